"""job.yaml: everything that decides a job, in one file that lies in git."""

import dataclasses
import math
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from yoloyard.common.errors import UsageError
from yoloyard.common.image_size import size_text
from yoloyard.config.foreign import overrides_of
from yoloyard.config.overrides import (
    checked_overrides,
    setting_name,
    unknown_name,
    values_as_written,
)
from yoloyard.config.settings import TrainConfig, settings_of
from yoloyard.machines.containers.host import parse_host
from yoloyard.machines.image.versions import find_tag
from yoloyard.planning.gpus import find_gpu
from yoloyard.storage.address import ADDRESS, check_address, is_address

NAME = re.compile(r"[A-Za-z0-9](?:[._-]?[A-Za-z0-9])*")
NAME_LETTERS = 40
IN_BACKUP = ("job", "data")  # what lies below `backup` beside the run, which has the job's name
# Settings of `yoloyard train` that a job decides by itself, and what to write instead.
DECIDED = {
    "resume": "a launch goes on with the job's run by itself; `launch --new` begins another",
    "name": "the job's `name:` is its name",
    "project": "runs lie in the job's folder there; `jobs fetch --project` says where they come to",
    "exist_ok": "a launch goes on with the job's run by itself",
    "backup": "write `backup:` beside `train:`",
    "nodes": "write `resources: {nodes: 2}`",
    "rendezvous": "the hosts of a job meet by themselves",
    "notify": "it may hold a secret: set the variable YOLOYARD_NOTIFY where it runs",
}
FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".py", ".yaml", ".yml")  # of settings that may also be a name
SWITCH_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Resources:
    """What each host of a job has. None leaves the choice to the plan or to the engine."""

    gpu: str | None = None  # a name of gpus.toml; "none" for a CPU
    count: int = 1  # GPUs of each host
    nodes: int = 1  # hosts
    spot: bool = False
    region: str | None = None
    cloud: str | None = None
    disk: int | None = None  # gigabytes


@dataclass(frozen=True)
class Limits:
    """When a job ends at the latest. None: no limit."""

    max_hours: float | None = None  # of all attempts together
    max_cost: float | None = None  # dollars, of all hosts and attempts together
    idle_minutes: float | None = None  # without a step


@dataclass(frozen=True)
class Job:
    """A job file. Paths of this machine are absolute; in the file they start from its folder."""

    path: Path
    name: str  # of its `name:`, else of the file, or of its folder if the file is called job.yaml
    train: Mapping[str, Any]  # overrides of TrainConfig, checked
    image: str | None = None  # a tag of versions.toml; None: the newest that fits
    resources: Resources = field(default_factory=Resources)
    data: str | None = None  # a local folder or an object-store prefix; None: the folder of train.data
    backup: str | None = None  # an object-store prefix
    limits: Limits = field(default_factory=Limits)
    on: str | None = None  # where it runs: ssh://user@host[:port], or a cloud; --on wins


def read_job(path: Path) -> Job:
    """The job of a file. Raises UsageError with line and column."""
    file = _File(path, path.absolute().parent)
    parts = file.entries(file.read(), [item.name for item in dataclasses.fields(Job) if item.name != "path"], "")
    if "train" not in parts:
        raise UsageError(f"{path} has no `train:`, which says what is trained: train: {{data: data.yaml, epochs: 100}}")
    checks: dict[str, Callable[[yaml.Node, str], Any]] = {
        "name": file.name,
        "train": file.train,
        "image": file.image,
        "resources": lambda node, name: file.numbers(Resources, node, name),
        "data": file.data,
        "backup": file.address,
        "limits": lambda node, name: file.numbers(Limits, node, name),
        "on": file.place,
    }
    values = {name: checks[name](node, name) for name, node in parts.items()}
    return Job(path, **{"name": file.default_name(), **values})


def settings_of_flags(words: Sequence[str]) -> dict[str, Any]:
    """The settings that flags say, as `yoloyard train` spells them: --epochs 3, epochs=3, --no-amp, --cos-lr.

    Values are texts. Raises UsageError for what is no flag, and for one that has no value.
    """
    known, found, rest = settings_of(TrainConfig), dict[str, Any](), list(words)
    while rest:
        word, follows = rest.pop(0), rest[0] if rest else "--"
        given, equals, value = word.removeprefix("--").partition("=")
        name = setting_name(given)
        if not (word.startswith("--") or equals):
            raise UsageError(f"not understood: {word}; a setting is written --name value or name=value")
        if name.startswith("no_") and name not in known and name[3:] in known:
            name, equals, value = name[3:], "=", "false"
        is_switch = name in known and known[name].type is bool
        if not equals:
            has_value = follows.lower() in SWITCH_WORDS if is_switch else not follows.startswith("--")
            if not (has_value or is_switch or name in ("cache", "resume")):
                raise UsageError(f"--{given} needs a value" if name in known else unknown_name(given, known))
            value = rest.pop(0) if has_value else "true" if is_switch else "ram"
        if name in found:
            raise UsageError(f"'{name}' is said twice: leave one out")
        found[name] = SWITCH_WORDS.get(value.lower(), value) if is_switch else value
    return found


@dataclass(frozen=True)
class _File:
    """A job file that is being read: the values of its nodes, and where each stands."""

    path: Path
    folder: Path

    def read(self) -> yaml.Node:
        try:
            loader = yaml.SafeLoader(self.path.read_bytes())  # of bytes yaml knows the byte order marks
            node = loader.get_single_node()
        except FileNotFoundError as error:
            raise UsageError(f"there is no file {self.path}; yoloyard job init writes one") from error
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror or error}") from error
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            place = f"{self.path}:{mark.line + 1}:{mark.column + 1}" if mark else str(self.path)
            problem = getattr(error, "problem", None) or " ".join(str(error).split())
            raise UsageError(f"{place}: not valid YAML in UTF-8: {problem}") from error
        if node is None:
            raise UsageError(f"{self.path} is empty; yoloyard job init writes one")
        return node

    def wrong(self, node: yaml.Node, message: str) -> UsageError:
        return UsageError(f"{self.path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}: {message}")

    def checked(self, node: yaml.Node, message: str, check: Callable[..., Any], *values: Any) -> Any:
        """What `check` gives; its UsageError gets the place of `node`, and goes where `message` has {}."""
        try:
            return check(*values)
        except UsageError as error:
            raise self.wrong(node, message.format(error)) from error

    def entries(self, node: yaml.Node, known: Sequence[str], name: str, is_open: bool = False) -> dict[str, yaml.Node]:
        """The values of a mapping by their keys, others than `known` if it `is_open`; empty ones are left out."""
        if not isinstance(node, yaml.MappingNode):
            what = f"'{name}' must hold" if name else "a job file holds"
            raise self.wrong(node, f"{what} lines such as '{known[0]}: ...'; there are: {', '.join(known)}")
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.wrong(key, f"a key must be one of {', '.join(known)}")
            if key.value in lines:
                raise self.wrong(key, f"'{key.value}' is said already in line {lines[key.value]}")
            lines[key.value] = key.start_mark.line + 1
        for key, _ in node.value:
            if not is_open and key.value not in known:
                raise self.wrong(key, unknown_name(str(key.value), known, f"key of {name}" if name else "key"))
        return {str(key.value): value for key, value in node.value if not value.tag.endswith(":null")}

    def text(self, node: yaml.Node, name: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value.strip() or not node.value.isprintable():
            raise self.wrong(node, f"'{name}' must be a text")
        return str(node.value.strip())

    def name(self, node: yaml.Node, name: str) -> str:
        text = self.text(node, name)
        if not NAME.fullmatch(text) or len(text) > NAME_LETTERS:
            rule = f"at most {NAME_LETTERS} letters a-z, digits, and - _ . between them"
            raise self.wrong(node, f"'{name}' names folders and hosts: it must be {rule}, not {text!r}")
        if text in IN_BACKUP:
            raise self.wrong(node, f"'{name}' can't be {text!r}: BACKUP/{text} has other things than the run")
        return text

    def default_name(self) -> str:
        own = self.folder.name if self.path.stem == "job" else self.path.stem
        name = "-".join(NAME.findall(own))[:NAME_LETTERS].rstrip("-._") or "training"
        return f"{name}-1" if name in IN_BACKUP else name

    def image(self, node: yaml.Node, name: str) -> str:
        return str(self.checked(node, "{}", find_tag, self.text(node, name)).name)

    def data(self, node: yaml.Node, name: str) -> str:
        text = self.text(node, name)
        return self.address(node, name) if "://" in text else self.local(text)

    def address(self, node: yaml.Node, name: str) -> str:
        text = self.text(node, name)
        if not ADDRESS.fullmatch(text):
            self.checked(node, f"'{name}': {{}}", check_address, text)
        return text.rstrip("/")

    def place(self, node: yaml.Node, name: str) -> str:
        text = self.text(node, name)
        if not re.fullmatch(r"[a-z][a-z0-9,-]*", text):
            self.checked(node, "{}; or a cloud: aws, gcp, kubernetes ...", parse_host, text)
        return text

    def local(self, path: str) -> str:
        """A path in the file, from the file's folder."""
        return os.path.normpath(self.folder / os.path.expanduser(path))

    def numbers(self, kind: type, node: yaml.Node, name: str) -> Any:
        """The Resources or Limits of a node."""
        known = {item.name: item.type for item in dataclasses.fields(kind)}
        values: dict[str, Any] = {}
        for key, value in self.entries(node, list(known), name).items():
            where, wanted = f"{name}.{key}", known[key]
            if wanted is bool:
                values[key] = self.switch(value, where)
            elif wanted == str | None:
                values[key] = self.text(value, where)
                if key == "gpu" and values[key] != "none":
                    found = self.checked(value, f"'{where}': {{}}; none: a CPU", find_gpu, values[key])
                    values[key] = found.name
            else:
                values[key] = self.number(value, where, is_whole=wanted in (int, int | None))
        return kind(**values)

    def switch(self, node: yaml.Node, name: str) -> bool:
        word = str(node.value).lower()
        if not isinstance(node, yaml.ScalarNode) or word not in SWITCH_WORDS:
            raise self.wrong(node, f"'{name}' must be true or false, not {node.value!r:.60}")
        return SWITCH_WORDS[word]

    def number(self, node: yaml.Node, name: str, is_whole: bool) -> Any:
        text, number = node.value, math.nan
        if isinstance(text, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text.strip()):
            number = float(text)
        if not math.isfinite(number) or number <= 0 or (is_whole and number != int(number)):
            kind = "a whole number" if is_whole else "a number"
            hint = "; a CPU is gpu: none" if name == "resources.count" and number == 0 else ""
            raise self.wrong(node, f"'{name}' must be {kind} above 0, without a unit, not {text!r:.60}{hint}")
        return int(number) if is_whole else number

    def train(self, node: yaml.Node, name: str) -> dict[str, Any]:
        """The overrides of TrainConfig, checked; files that are named are absolute paths."""
        try:
            if isinstance(node, yaml.ScalarNode):
                keys, given = {}, settings_of_flags(shlex.split(node.value))
            else:
                nodes = self.entries(node, list(settings_of(TrainConfig)), name, is_open=True)
                tree = {key: self.value(value) for key, value in nodes.items()}
                keys, given = {key.value: key for key, _ in node.value}, values_as_written(tree, node)
            for key, value in given.items():
                self.check_setting(key, value, keys.get(key, node))
            config = given.pop("config", None)
            if config is not None:
                file = Path(self.local(str(config)))
                given = overrides_of(file) | given
                for key in given.keys() & DECIDED.keys():
                    self.check_setting(key, given[key], keys.get("config", node))
            settings = checked_overrides(TrainConfig, given)
        except (UsageError, ValueError) as error:  # ValueError: of shlex
            if str(error).startswith(f"{self.path}:"):
                raise
            raise self.wrong(node, f"{name}: {error}") from error
        if not settings.get("data"):
            raise self.wrong(node, f"'{name}' has no data: name the data.yaml of your images and labels")
        return {key: self.setting(key, value) for key, value in settings.items()}

    def value(self, node: yaml.Node) -> Any:
        try:
            return yaml.SafeLoader("").construct_document(node)
        except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:  # as yaml raises them
            raise self.wrong(node, f"no value can be made of this ({' '.join(str(error).split()):.100})") from error

    def check_setting(self, key: str, value: Any, node: yaml.Node) -> None:
        given = setting_name(key)
        if given in DECIDED:
            raise self.wrong(node, f"train: '{key}' is the job's own: {DECIDED[given]}")
        if given != "config":
            self.checked(node, "train: {}", checked_overrides, TrainConfig, {key: value})

    def setting(self, name: str, value: Any) -> Any:
        leaf = settings_of(TrainConfig)[name]
        if isinstance(value, tuple):  # JSON, which notes of launches are, has none
            return size_text(value)
        if not leaf.is_path or not isinstance(value, str) or is_address(value):
            return value
        file = value.partition(":")[0]
        is_file = name in ("data", "transform", "weights") or file.lower().endswith(FILE_SUFFIXES)
        return self.local(value) if is_file else value
