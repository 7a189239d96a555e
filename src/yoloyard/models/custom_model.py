"""A custom model: `my_model.py:build`, a user file and the function in it that makes the detector.

A run keeps a copy of the file, and its weight files the copy's digest.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from yoloyard.common.errors import UserError
from yoloyard.common.user_file import UserFile, is_custom
from yoloyard.models.detector import Detector
from yoloyard.models.heads import Head

__all__ = ["CustomModel", "beside", "is_custom", "read_kept", "read_custom"]


class CustomModel(UserFile):
    """A user file and the name of a function in it, `build(num_classes) -> Detector`."""

    def build(self, num_classes: int, channels: int | None = 3) -> Detector:
        """The user's detector, on the CPU, after one forward with an empty image, which shows mistakes early.

        The function is told nothing of `channels`, those of the images: its detector takes so many or not. Without
        data, None, they are those of its first convolution. Raises UserError with the line of the user file if the
        file, the function or that forward fails, and UsageError if the function is not there.
        """
        function = self.load("model")
        try:
            detector = function(num_classes)
            if not isinstance(detector, Detector):
                raise UserError(f"{self.path}: {self.function} must return a yoloyard Detector, not {detector!r:.80}")
            first = next((each for each in detector.modules() if isinstance(each, torch.nn.Conv2d)), None)
            detector.image_channels = channels or (3 if first is None else first.in_channels)
            _check(detector, num_classes, str(self.path))
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise self.explained(error) from error
        return detector


def read_custom(model: str) -> CustomModel:
    """The file and function that `my_model.py:build` names. Raises UsageError if there is no such file."""
    return CustomModel.read(model, "model", f"network: --model {model}:build")


def beside(weights: Path, metadata: Mapping[str, Any]) -> CustomModel:
    """The user file that belongs to a weight file, beside it or a folder above. Raises what `read_kept` raises."""
    return read_kept(metadata["model"], metadata.get("model_digest"), [weights.parent, weights.parent.parent])


def read_kept(model: str, digest: str | None, folders: list[Path]) -> CustomModel:
    """The user file that `model` names, in the first of `folders` that has one.

    Raises UserError if there is none or if its `digest` is not that of the file that the weights were trained with.
    """
    file, _, function = model.rpartition(":")
    name = Path(file).name
    for folder in folders:
        if (folder / name).is_file():
            kept = read_custom(f"{folder / name}:{function}")
            if kept.digest != digest:
                raise UserError(f"{kept.path} is not the file that these weights were trained with; put that one back")
            return kept
    raise UserError(
        f"these weights belong to the network in {name}, which is not beside them; its copy lies in their run's folder"
    )


def _check(detector: Detector, num_classes: int, name: str) -> None:
    """Compare the raw maps of one image with what the head's loss and `decode` expect. Raises UserError."""
    if not isinstance(head := getattr(detector, "head", None), Head):
        raise UserError(f"{name}: the detector's `head` must be a Head of yoloyard.models.heads")
    if not hasattr(head, "criterion"):
        raise UserError(f"{name}: the head must have a `criterion`, a name in yoloyard.losses.LOSSES or a method")
    if head.num_classes != num_classes:
        raise UserError(f"{name}: the head has {head.num_classes} classes, the data {num_classes}")
    size = 4 * max(head.strides)

    def check_features(_: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        _check_levels(f"{name}: the head wants", head, arguments[0], head.in_channels, size)

    hook = head.register_forward_pre_hook(check_features)
    training = detector.training
    try:
        with torch.no_grad():
            maps = _maps(detector.eval(), size, name)
            _check_levels(f"{name}: forward must return", head, maps, [head.outputs] * len(head.strides), size)
            detector.decode(maps)
    finally:
        hook.remove()
    detector.train(training)


def _maps(detector: Detector, size: int, name: str) -> Any:
    """What `detector` makes of an empty image. Raises UserError where it is the number of channels that it fails on."""
    try:
        return detector(torch.zeros(1, detector.image_channels, size, size))
    except RuntimeError as error:
        if detector.image_channels == 3 or "channels" not in str(error):
            raise
        reason = " ".join(str(error).split())
        what = f"the images of the data have {detector.image_channels} channels"
        raise UserError(f"{name}: {what}: {reason:.200}") from error


def _check_levels(what: str, head: Head, maps: Any, channels: Sequence[int], size: int) -> None:
    """Is there a map (1, channels, h, w) for each stride, for an image of `size` pixels? Raises UserError."""
    number = len(maps) if isinstance(maps, list | tuple) else None
    if number != len(head.strides):
        instead = f"{maps!r:.80}" if number is None else f"{number} maps"
        raise UserError(f"{what} {len(head.strides)} maps, one a stride, came {instead}")
    for level, (stride, width, found) in enumerate(zip(head.strides, channels, maps, strict=True)):
        expected, came = (1, width, size // stride, size // stride), tuple(found.shape)
        if came != expected:
            place = f"at level {level} with stride {stride} for an image of {size} x {size} pixels"
            raise UserError(f"{what} {expected} {place}, came {came}")
