"""A network of the user's own: `my_model.py:build`, a file and the function in it that makes the detector.

The file is run anew each time, so that editing it and starting again is all it takes. A run keeps a copy of it, and
its weight files the copy's digest: what is trained is used with the code that it was trained with.
"""

from __future__ import annotations

import hashlib
import linecache
import re
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from yoloyard.errors import OWN_MODULE, UsageError, UserError, own_line
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorBasedHead, AnchorFreeHead


@dataclass(frozen=True)
class OwnModel:
    """A file of the user's and the name of a function in it, `build(num_classes) -> Detector`."""

    path: Path
    function: str
    source: bytes

    @property
    def word(self) -> str:
        """How a weight file names it: without the folder."""
        return f"{self.path.name}:{self.function}"

    @property
    def digest(self) -> str:
        """SHA-256 of the file's content."""
        return hashlib.sha256(self.source).hexdigest()

    def build(self, num_classes: int) -> Detector:
        """The user's detector, on the CPU; looked at once with an empty image, so that mistakes show at once.

        Raises UserError with the user's own line if the file, the function or the first forward fails, and UsageError
        if the function is not there.
        """
        try:
            function = getattr(self._module(), self.function, None)
            if not callable(function):
                raise UsageError(f"{self.path} has no function {self.function}; say --model {self.path}:NAME")
            detector = function(num_classes)
            if not isinstance(detector, Detector):
                raise UserError(f"{self.path}: {self.function} must return a yoloyard Detector, not {detector!r:.80}")
            _check(detector, num_classes, str(self.path))
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            reason = " ".join(str(error).split())  # torch's are long; this is one line
            raise UserError(f"{own_line(error) or self.path}: {type(error).__name__}: {reason}") from error
        return detector

    def _module(self) -> types.ModuleType:
        """The file, run as a module; nothing of an earlier run of it is used again."""
        module = types.ModuleType(f"{OWN_MODULE}{self.path.stem}")
        module.__file__ = file = str(self.path)
        sys.modules[module.__name__] = module  # dataclasses and pickle look their module up there
        # errors show the lines that run, not those that the file has got since
        lines = self.source.decode("utf-8", "replace").splitlines(keepends=True)
        linecache.cache[file] = (len(self.source), None, lines, file)
        exec(compile(self.source, file, "exec", dont_inherit=True), module.__dict__)
        return module


def is_own(model: str) -> bool:
    """Does this word name a file of the user's and a function in it?"""
    return re.fullmatch(r".+\.py(:\w+)?", model) is not None


def read_own(model: str) -> OwnModel:
    """The file and function that `my_model.py:build` names. Raises UsageError if there is no such file."""
    file, _, function = model.rpartition(":")
    if not function.isidentifier() or not file:
        raise UsageError(f"--model {model}: say which function makes the network: --model {model}:build")
    path = Path(file).absolute()
    try:
        return OwnModel(path, function, path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the model {path}: {error.strerror or error}") from error


def beside(weights: Path, metadata: Mapping[str, Any]) -> OwnModel:
    """The copy of the user's file that belongs to a weight file: beside it or, as a run keeps it, a folder above.

    Raises UserError if there is none or if it has changed.
    """
    return read_kept(metadata["model"], metadata.get("model_digest"), [weights.parent, weights.parent.parent])


def read_kept(model: str, digest: str | None, folders: list[Path]) -> OwnModel:
    """The file that `model` names, as a run has kept it, in the first of `folders` that has one.

    Raises UserError if there is none or if it is another than the weights were trained with.
    """
    file, _, function = model.rpartition(":")
    name = Path(file).name
    for folder in folders:
        if (folder / name).is_file():
            kept = read_own(f"{folder / name}:{function}")
            if kept.digest != digest:
                raise UserError(f"{kept.path} is not the file that these weights were trained with; put that one back")
            return kept
    raise UserError(
        f"these weights belong to the network in {name}, which is not beside them; its copy lies in their run's folder"
    )


def _check(detector: Detector, num_classes: int, name: str) -> None:
    """Compare the raw maps of one image with what the head's loss and `decode` expect. Raises UserError."""
    head: Any = getattr(detector, "head", None)
    if not isinstance(head, AnchorFreeHead | AnchorBasedHead):
        raise UserError(f"{name}: the detector's `head` must be an AnchorFreeHead or an AnchorBasedHead")
    if head.num_classes != num_classes:
        raise UserError(f"{name}: the head has {head.num_classes} classes, the data {num_classes}")
    size = 4 * max(head.strides)

    def check_features(_: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        _check_levels(f"{name}: the head wants", head, arguments[0], head.in_channels, size)

    hook = head.register_forward_pre_hook(check_features)
    training = detector.training
    try:
        with torch.no_grad():
            maps = detector.eval()(torch.zeros(1, 3, size, size))
            _check_levels(f"{name}: forward must return", head, maps, [head.outputs] * len(head.strides), size)
            detector.decode(maps)
    finally:
        hook.remove()
    detector.train(training)


def _check_levels(what: str, head: Any, maps: Any, channels: Sequence[int], size: int) -> None:
    """Is there a map (1, channels, h, w) for each stride, for an image of `size` pixels? Raises UserError."""
    if not isinstance(maps, list | tuple) or len(maps) != len(head.strides):
        came = f"{len(maps)} maps" if isinstance(maps, list | tuple) else f"{maps!r:.80}"
        raise UserError(f"{what} {len(head.strides)} maps, one a stride, came {came}")
    for level, (stride, width, found) in enumerate(zip(head.strides, channels, maps, strict=True)):
        expected = (1, width, size // stride, size // stride)
        if tuple(found.shape) != expected:
            raise UserError(
                f"{what} {expected} at level {level} with stride {stride} for an image of {size} x {size} pixels, "
                f"came {tuple(found.shape)}"
            )
