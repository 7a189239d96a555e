"""The words a user may say, once: one typed tree that is the YAML file, the flags and the table in the docs.

The tree is nested so that each room is handed its own part; the words are flat, since every leaf has a name of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import numbers
import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from yoloyard.common.errors import UsageError

Config = TypeVar("Config")


def setting(
    default: Any,
    help: str,
    at_least: float | None = None,
    at_most: float | None = None,
    joined: bool = False,
    is_path: bool = False,
    hidden: bool = False,
) -> Any:
    """A leaf of the tree: its default, its help text and the range it must lie in.

    `joined`: a text of parts joined by commas, which may be a list in YAML and Python. `is_path`: `~` at its beginning
    is the home folder. `hidden`: in no help and no table.
    """
    limits = {"at_least": at_least, "at_most": at_most}
    kind = {"joined": joined, "is_path": is_path, "hidden": hidden}
    return field(default=default, metadata={"help": help, **limits, **kind})


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are varied."""

    mosaic: float = setting(1.0, "probability of joining four images into one", 0, 1)
    mixup: float = setting(0.0, "probability of blending two images", 0, 1)
    hsv_h: float = setting(0.015, "hue jitter, fraction of the colour circle", 0, 1)
    hsv_s: float = setting(0.7, "saturation jitter, fraction", 0, 1)
    hsv_v: float = setting(0.4, "brightness jitter, fraction", 0, 1)
    degrees: float = setting(0.0, "rotation, plus or minus degrees", 0, 180)
    translate: float = setting(0.1, "shift, plus or minus fraction of the image", 0, 1)
    scale: float = setting(0.5, "zoom, plus or minus fraction", 0, 0.99)
    shear: float = setting(0.0, "shear, plus or minus degrees", 0, 89)
    perspective: float = setting(0.0, "perspective, plus or minus, per pixel", 0, 0.01)
    flipud: float = setting(0.0, "probability of an upside-down flip", 0, 1)
    fliplr: float = setting(0.5, "probability of a left-right flip", 0, 1)
    close_mosaic: int = setting(10, "last epochs without mosaic and mixup", 0)


@dataclass(frozen=True)
class OptimizerConfig:
    """How the weights are moved."""

    optimizer: str = setting("auto", "SGD, AdamW or auto (chosen by the number of updates)")
    lr0: float = setting(0.01, "initial learning rate", 0)
    lrf: float = setting(0.01, "final learning rate as a fraction of lr0", 0, 1)
    momentum: float = setting(0.937, "SGD momentum, or Adam's beta1", 0, 0.9999)
    weight_decay: float = setting(0.0005, "for a batch of nbs", 0)
    warmup_epochs: float = setting(3.0, "epochs of warm-up", 0)
    warmup_momentum: float = setting(0.8, "momentum at the start of warm-up", 0, 1)
    warmup_bias_lr: float = setting(0.1, "learning rate of biases at the start of warm-up", 0)
    cos_lr: bool = setting(False, "cosine schedule instead of a linear one")
    ema_ramp: float = setting(2000.0, "updates after which the average of the weights has a long memory", 1)
    nbs: int = setting(64, "nominal batch: images of one optimizer update", 1)


@dataclass(frozen=True)
class LossConfig:
    """Gains of the parts of the loss, and what is peculiar to YOLOv5's."""

    box: float = setting(7.5, "gain of the box loss", 0)
    cls: float = setting(0.5, "gain of the class loss", 0)
    dfl: float = setting(1.5, "gain of the distribution focal loss (not YOLOv5)", 0)
    obj: float = setting(1.0, "gain of the objectness loss (YOLOv5)", 0)
    anchor_t: float = setting(4.0, "an anchor learns boxes up to so many times longer or shorter (YOLOv5)", 1)
    autoanchor: bool = setting(True, "make new anchors where the boxes don't fit them (YOLOv5)")
    label_smoothing: float = setting(0.0, "share of the class targets that is spread evenly (YOLOv5)", 0, 0.99)
    cls_pw: float = setting(1.0, "weight of positive class targets (YOLOv5)", 0)
    obj_pw: float = setting(1.0, "weight of positive objectness targets (YOLOv5)", 0)


@dataclass(frozen=True)
class EvaluationConfig:
    """How predictions are made for the figures."""

    conf: float = setting(0.001, "lowest score that counts", 0, 1)
    iou: float = setting(0.7, "overlap above which suppression drops a box", 0, 1)
    max_det: int = setting(300, "most detections of an image", 1)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run."""

    data: str = setting("", "the data.yaml of your images and labels", is_path=True)
    strict: bool = setting(False, "stop if anything is wrong with the data, instead of leaving out what can't be used")
    model: str = setting("yolo11n", "a name (see yoloyard info), a weight file, or my_model.py:build", is_path=True)
    weights: str | None = setting(None, "weight file to start from; what fits is taken", is_path=True)
    epochs: int = setting(100, "epochs", 1)
    batch: int = setting(16, "images of one step", 1)
    imgsz: int = setting(640, "training size in pixels, rounded up to a multiple of the largest stride", 32)
    device: str = setting("auto", "auto, cpu, cuda, 0, mps, or several: 0,1", joined=True)
    device_path: str = setting("auto", "for tests: with 'accelerator' a CPU runs the code that a GPU runs", hidden=True)
    processes: int = setting(1, "processes that share a batch, on cpu or with a GPU each", 1)
    hang_timeout: float = setting(
        300.0, "seconds that a process may keep the others waiting, after the first steps, before the run ends", 1
    )
    sync_bn: bool = setting(False, "batch normalisation over all processes' images (GPUs only)")
    workers: int = setting(8, "processes that load images (0: load in the training process)", 0)
    amp: bool = setting(True, "mixed precision: bfloat16 where the hardware has it, else float16 with loss scaling")
    compile: bool = setting(
        False, "compile the network by torch.compile: faster steps after minutes of compiling; wants a C++ compiler"
    )
    cache: str | None = setting(None, "ram or disk: keep all images decoded, in memory or in a file that is used again")
    transform: str | None = setting(None, "my_transform.py:NAME, a function or Albumentations pipeline", is_path=True)
    freeze: str | None = setting(None, "N: the first N blocks; or prefixes of parameter names, joined by commas")
    time: float | None = setting(None, "hours that the run may take; without --epochs it takes them all", 0)
    val_period: int = setting(1, "validate every so many epochs, and after the last", 1)
    patience: int = setting(100, "stop after so many epochs without a better figure (0: never)", 0)
    best_by: str = setting("map50_95", "figure that decides which weights are best")
    save_period: int = setting(10, "keep a checkpoint every so many epochs (0: only the last)", 0)
    keep: int = setting(3, "how many of the periodic checkpoints are kept", 1)
    seed: int = setting(0, "the same seed gives the same run", 0, 10**15)
    classes: str | None = setting(None, "train on these classes alone: numbers or names joined by commas", joined=True)
    single_cls: bool = setting(False, "take all classes as one, 'object'")
    fraction: float = setting(1.0, "share of the training images to use, above 0; chosen by the seed", 0, 1)
    rect: bool = setting(False, "batches of similar shapes with little padding, without mosaic and mixup")
    multi_scale: bool = setting(False, "each batch in another size, 0.5 to 1.5 times imgsz")
    class_weights: str | None = setting(
        None, "weights of the class loss: balanced, or a number for each class, joined by commas", joined=True
    )
    repeat_factor: float = setting(
        0.0, "images with a class that is in a smaller share of the images than this come more often (0: off)", 0, 1
    )
    project: str = setting("runs", "folder of the run folders", is_path=True)
    name: str | None = setting(None, "name of the run (default: the data file's)")
    exist_ok: bool = setting(False, "write into an existing run folder")
    tensorboard: bool = setting(True, "write TensorBoard files where the package is installed")
    wandb: bool = setting(False, "show the run in Weights & Biases, under the account that its package knows")
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimization: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "nothing"}
NEWEST = "newest"  # what `--resume` without a folder means

# Spellings of YOLOv5's command line.
ALIASES = {"img": "imgsz", "img_size": "imgsz", "batch_size": "batch", "cfg": "model"}

# The same for values, in small letters, and how others say that a setting is left out.
UNSAID_WHERE_EMPTY = ("weights", "model", "device")
OPTIMIZERS = {"auto": "auto", "sgd": "SGD", "adamw": "AdamW"}
VALUES: dict[str, dict[str, Any]] = {
    "cache": {"true": "ram", "false": None, "ram": "ram", "disk": "disk"},
    "optimizer": OPTIMIZERS,
    "save_period": {"-1": 0},
}


@dataclass(frozen=True)
class Setting:
    """A leaf of the tree: where it lies and what it may be."""

    name: str
    path: tuple[str, ...]
    type: Any
    default: Any
    help: str
    at_least: float | None
    at_most: float | None
    joined: bool
    is_path: bool
    hidden: bool


def settings_of(tree: type) -> dict[str, Setting]:
    """All leaves of a configuration class by their name."""
    return {leaf.name: leaf for leaf in _leaves(tree, ())}


def flat_settings(config: Any) -> dict[str, Any]:
    """The flat words of a configuration, as they stand in a YAML file."""
    values = {}
    for leaf in settings_of(type(config)).values():
        value = config
        for part in leaf.path:
            value = getattr(value, part)
        values[leaf.name] = value
    return values


def normal_overrides(tree: type, words: Mapping[str, Any]) -> dict[str, Any]:
    """The words under their own names: `_` for `-`, YOLOv5's spellings replaced, `weights: ''` and the like left out.

    Raises UsageError on unknown ones, and on one that is said twice, as `batch` and `batch_size`.
    """
    known = settings_of(tree)
    normal: dict[str, Any] = {}
    said_as: dict[str, str] = {}
    for given, value in words.items():
        name = ALIASES.get(given.replace("-", "_"), given.replace("-", "_"))
        if name not in known:
            raise UsageError(unknown_name(given, known))
        value = VALUES.get(name, {}).get(str(value).lower(), value)
        is_empty = value is None or (isinstance(value, str) and not value.strip())
        if not (name in UNSAID_WHERE_EMPTY and is_empty):
            if name in normal:
                raise UsageError(f"'{name}' is said twice, as '{said_as[name]}' and as '{given}': leave one out")
            normal[name], said_as[name] = value, given
    return normal


def with_overrides(config: Config, words: Mapping[str, Any]) -> Config:
    """The configuration with some words changed. Raises UsageError on an unknown word or a value that can't be."""
    known = settings_of(type(config))
    changes: dict[str, Any] = {}
    for name, value in normal_overrides(type(config), words).items():
        branch = changes
        for part in known[name].path[:-1]:
            branch = branch.setdefault(part, {})
        branch[name] = _checked(known[name], value)
    return _replace(config, changes)


def checked_overrides(tree: type, words: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides under their own names, with values as a configuration holds them. Raises UsageError."""
    values = flat_settings(with_overrides(tree(), words))
    return {name: values[name] for name in normal_overrides(tree, words)}


def read_overrides(path: Path) -> dict[str, Any]:
    """The words of a YAML file, texts and numbers as they are written. Raises UsageError with the line if it is broken,
    or says a word twice.
    """
    import yaml

    try:
        content = path.read_bytes()  # of bytes yaml knows the byte order marks of UTF-8 and UTF-16
        tree, loader = yaml.safe_load(content), yaml.BaseLoader(content)
        node = loader.get_single_node()
        texts = loader.construct_document(node) if node else {}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:  # ValueError: 2024-13-45
        raise UsageError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict) or not all(isinstance(name, str) for name in tree):
        raise UsageError(f"{path} must hold lines such as 'epochs: 100'")
    lines: dict[str, int] = {}
    for key, _ in node.value if node else ():
        line = key.start_mark.line + 1
        if key.value in lines:
            raise UsageError(f"{path}:{line}: '{key.value}' is said already in line {lines[key.value]}")
        lines[key.value] = line
    return _words_as_written(tree, texts)


def _words_as_written(tree: Mapping[str, Any], texts: Mapping[str, Any]) -> dict[str, Any]:
    """The words without what YAML 1.1 makes of a text or number: of 0123 83, of 1:30 90, of no False, of 3.10 3.1."""
    known = settings_of(TrainConfig)
    words = {}
    for name, value in tree.items():
        leaf, text = known.get(ALIASES.get(name.replace("-", "_"), name.replace("-", "_"))), texts.get(name)
        words[name] = value
        if isinstance(value, dict) and isinstance(text, dict):  # yolov5's `hyp`
            words[name] = _words_as_written(value, text)
        elif leaf is not None and leaf.type in (str, str | None) and leaf.name != "cache" and value is not None:
            words[name] = _as_written(value, text)
        elif leaf is not None and type(value) in (int, float) and isinstance(text, str) and not _says(text, value):
            words[name] = text
    return words


def _as_written(value: Any, text: Any) -> Any:
    if isinstance(value, list) and isinstance(text, list):
        return [_as_written(*pair) for pair in zip(value, text, strict=True)]
    is_plain = not isinstance(text, str) or (type(value) is int and str(value) == text)
    return value if is_plain else text


def _says(text: str, number: float) -> bool:
    """Is this the number that the text says in decimal digits?"""
    with contextlib.suppress(ValueError):
        return float(text) == number
    return False


def whole_number(text: str) -> int:
    """The number that a text such as `12`, `12.0` or `1e3` says. Raises ValueError if it is no whole number."""
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError, OverflowError):
        number = float(text)
        if number == int(number):
            return int(number)
    raise ValueError(f"{text!r} is not a whole number")


def unknown_name(given: str, known: Iterable[str] | Mapping[str, Any], kind: str = "setting") -> str:
    """The message for a word that isn't there, with the nearest one that is."""
    names = sorted(known)
    nearest = difflib.get_close_matches(given.replace("-", "_"), names, n=1, cutoff=0.5)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else f"; there are: {', '.join(names)}"
    return f"unknown {kind} '{given}'{hint}"


def _leaves(tree: type, above: tuple[str, ...]) -> Iterator[Setting]:
    types_of = typing.get_type_hints(tree)
    for item in dataclasses.fields(tree):
        path = (*above, item.name)
        if dataclasses.is_dataclass(types_of[item.name]):
            yield from _leaves(types_of[item.name], path)
        else:
            yield Setting(item.name, path, types_of[item.name], item.default, **item.metadata)


def _replace(config: Any, changes: dict[str, Any]) -> Any:
    nested = {
        name: _replace(getattr(config, name), change) if isinstance(change, dict) else change
        for name, change in changes.items()
    }
    return dataclasses.replace(config, **nested)


def _checked(leaf: Setting, value: Any) -> Any:
    allowed = typing.get_args(leaf.type) if isinstance(leaf.type, types.UnionType) else (leaf.type,)
    if value is None and type(None) in allowed:
        return None
    if hasattr(value, "tolist"):  # NumPy's and torch's
        value = value.tolist()
    if str(type(value)) == "<class 'torch.device'>":  # torch is imported by few commands
        value = str(value)
    if leaf.joined and isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    if isinstance(value, numbers.Real) and not isinstance(value, bool | int | float):
        value = float(value)  # a fraction
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and str in allowed:
        value = str(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in allowed:
        value = float(value)
    if isinstance(value, str) and str not in allowed:  # in quotes, or 1e-3, which YAML takes for a word
        with contextlib.suppress(ValueError):
            value = whole_number(value) if int in allowed else float(value) if float in allowed else value
    if isinstance(value, float) and value.is_integer() and int in allowed:
        value = int(value)
    if isinstance(value, str) and leaf.is_path:
        value = os.path.expanduser(value)
    if type(value) not in allowed:
        expected = " or ".join(KINDS[kind] for kind in allowed)
        raise UsageError(f"'{leaf.name}' must be {expected}, not {value!r:.80} ({leaf.help})")
    if isinstance(value, str) and "\0" in value:
        raise UsageError(f"'{leaf.name}' must have no NUL byte: {value!r:.80} ({leaf.help})")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"'{leaf.name}' must be a finite number, not {value!r} ({leaf.help})")
    if isinstance(value, int | float) and not isinstance(value, bool):
        below = leaf.at_least is not None and not value >= leaf.at_least
        above = leaf.at_most is not None and not value <= leaf.at_most
        if below or above:
            limit = f"at least {leaf.at_least:g}" if below else f"at most {leaf.at_most:.10g}"
            raise UsageError(f"'{leaf.name}' must be {limit}, not {value!r} ({leaf.help})")
    return value
