"""What users write, as settings: names and values are checked, and the spellings of other projects understood."""

import contextlib
import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from yoloyard.common.errors import UsageError
from yoloyard.common.image_size import parse_size, size_text
from yoloyard.config.settings import AUTO, OPTIMIZERS, Setting, TrainConfig, settings_of

Config = TypeVar("Config")

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "nothing"}
KINDS[tuple] = "HEIGHTxWIDTH"

# Spellings of YOLOv5's command line: names, and values in small letters.
ALIASES = {"img": "imgsz", "img_size": "imgsz", "batch_size": "batch", "cfg": "model"}
VALUES: dict[str, dict[str, Any]] = {
    "cache": {"true": "ram", "false": None, "ram": "ram", "disk": "disk"},
    "optimizer": {name.lower(): name for name in OPTIMIZERS},
    "save_period": {"-1": 0},
    "suppression": {"on": "on", "off": "off", "true": "on", "false": "off"},  # YAML's on is true
    "tile": {"off": 0, "false": 0},
}
UNSET_IF_EMPTY = ("weights", "model", "device")


def normal_overrides(tree: type, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides by the names of `tree`: `_` for `-`, other spellings replaced, `weights: ''` and the like left out.

    Raises UsageError for an unknown name, and for a setting that is given twice, as `batch` and `batch_size`.
    """
    known = settings_of(tree)
    normal: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    for given, value in overrides.items():
        name = setting_name(given)
        if name not in known:
            raise UsageError(unknown_name(given, [each for each, leaf in known.items() if not leaf.hidden]))
        value = VALUES.get(name, {}).get(str(value).lower(), value)
        if name in UNSET_IF_EMPTY and (value is None or (isinstance(value, str) and not value.strip())):
            continue
        if name in normal:
            raise UsageError(f"'{name}' is said twice, as '{given_as[name]}' and as '{given}': leave one out")
        normal[name], given_as[name] = value, given
    return normal


def checked_overrides(tree: type, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides by the names of `tree`, with values as a configuration holds them.

    Raises UsageError for an unknown name or a value that is not possible.
    """
    known = settings_of(tree)
    return {name: _checked(known[name], value) for name, value in normal_overrides(tree, overrides).items()}


def read_overrides(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, texts and numbers as they are written.

    Raises UsageError with the line if the file is broken or gives a setting twice.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(path.read_bytes())  # of bytes yaml knows the byte order marks of UTF-8 and UTF-16
        node = loader.get_single_node()
        keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        tree = loader.construct_document(node) if node else None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:  # ValueError: 2024-13-45
        raise UsageError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict) or not all(isinstance(name, str) for name in tree):
        raise UsageError(f"{path} must hold lines such as 'epochs: 100'")
    lines: dict[str, int] = {}
    for key in keys:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise UsageError(f"{path}:{line}: '{key.value}' is said already in line {lines[key.value]}")
        lines[key.value] = line
    return values_as_written(tree, node)


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """A copy of the configuration with some settings changed. Raises UsageError as `checked_overrides` does."""
    known, checked = settings_of(type(config)), checked_overrides(type(config), overrides)
    values = {name: value for name, value in checked.items() if not (known[name].auto and value == AUTO)}
    return _replaced(config, values)


def setting_name(given: str) -> str:
    """The name of a setting that is written with `-` for `_`, or as YOLOv5 spells it."""
    name = given.replace("-", "_")
    return ALIASES.get(name, name)


def unknown_name(given: str, known: Iterable[str], kind: str = "setting") -> str:
    """The message for a name that is not known, with the nearest one that is."""
    names = sorted(known)
    nearest = difflib.get_close_matches(given.replace("-", "_"), names, n=1, cutoff=0.5)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else f"; there are: {', '.join(names)}"
    return f"unknown {kind} '{given}'{hint}"


def values_as_written(tree: Mapping[str, Any], node: Any) -> dict[str, Any]:
    """The values without what YAML 1.1 makes of a text or number: of 0123 83, of 1:30 90, of no False, of 3.10 3.1."""
    known, nodes = settings_of(TrainConfig), {key.value: item for key, item in node.value}
    values = dict(tree)
    for name, value in tree.items():
        leaf = known.get(setting_name(name))
        if isinstance(value, dict):  # yolov5's `hyp`
            values[name] = values_as_written(value, nodes[name])
        elif leaf is not None and leaf.type in (str, str | None) and leaf.name != "cache" and value is not None:
            values[name] = _text_as_written(value, nodes[name])
        elif leaf is not None and type(value) in (int, float):
            values[name] = text = nodes[name].value  # 0x10 and 1:30 are no numbers here
            with contextlib.suppress(ValueError):
                values[name] = value if float(text) == value else text
    return values


def whole_number(text: str) -> int:
    """The number that a text such as `12`, `12.0` or `1e3` says. Raises ValueError if it is no whole number."""
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError, OverflowError):
        number = float(text)
        if number == int(number):
            return int(number)
    raise ValueError(f"{text!r} is not a whole number")


def _replaced(config: Any, values: Mapping[str, Any]) -> Any:
    parts = {name: _replaced(part, values) for name, part in vars(config).items() if dataclasses.is_dataclass(part)}
    return dataclasses.replace(config, **parts, **{name: values[name] for name in vars(config) if name in values})


def _checked(leaf: Setting, value: Any) -> Any:
    """The value in a type of the leaf. Raises UsageError if it has none, or lies outside the leaf's range."""
    kinds = typing.get_args(leaf.type) if isinstance(leaf.type, types.UnionType) else (leaf.type,)
    allowed = tuple(typing.get_origin(kind) or kind for kind in kinds)
    if (value is None and type(None) in allowed) or (leaf.auto and value == AUTO):
        return value
    value = _converted(leaf, value, allowed)
    numbers = value if type(value) is tuple else (value,) if type(value) in (int, float) else ()
    if type(value) not in allowed:
        possible = " or ".join([KINDS[kind] for kind in allowed] + [AUTO] * leaf.auto)
        problem = f"be {possible}, not {value!r:.80}"
    elif isinstance(value, str) and "\0" in value:
        problem = f"have no NUL byte: {value!r:.80}"
    elif leaf.choices and value not in leaf.choices:
        problem = f"be {' or '.join(leaf.choices)}, not {value!r:.80}"
    elif not all(map(math.isfinite, numbers)):
        problem = f"be a finite number, not {value!r}"
    elif numbers and leaf.at_least is not None and min(numbers) < leaf.at_least:
        problem = f"be at least {leaf.at_least:g}, not {size_text(value) if type(value) is tuple else repr(value)}"
    elif numbers and leaf.at_most is not None and max(numbers) > leaf.at_most:
        problem = f"be at most {leaf.at_most:.10g}, not {value!r}"
    else:
        return value
    raise UsageError(f"'{leaf.name}' must {problem} ({leaf.help})")


def _converted(leaf: Setting, value: Any, allowed: tuple[Any, ...]) -> Any:
    """The value in one of the allowed types, where that loses nothing."""
    if hasattr(value, "tolist"):  # NumPy's and torch's
        value = value.tolist()
    if str(type(value)) == "<class 'torch.device'>":  # torch is imported by few commands
        value = str(value)
    if tuple in allowed:
        value = parse_size(value)
    if leaf.joined and isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if type(value) in (int, float) and str in allowed:
        value = str(value)
    if type(value) is int and float in allowed:
        value = float(value)
    if isinstance(value, str) and str not in allowed:  # in quotes, or 1e-3, which YAML takes for a text
        with contextlib.suppress(ValueError):
            value = whole_number(value) if int in allowed else float(value) if float in allowed else value
    if isinstance(value, float) and value.is_integer() and int in allowed:
        value = int(value)
    if isinstance(value, str) and leaf.is_path:
        value = os.path.expanduser(value)
    return value


def _text_as_written(value: Any, node: Any) -> Any:
    if isinstance(value, list):
        return [_text_as_written(*pair) for pair in zip(value, node.value, strict=True)]
    is_plain = not isinstance(node.value, str) or (type(value) is int and str(value) == node.value)
    return value if is_plain else node.value
