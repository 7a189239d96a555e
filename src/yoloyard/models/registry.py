"""The models there are, by name."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from yoloyard.errors import UsageError
from yoloyard.models import yolo11, yolov8
from yoloyard.models.detector import Detector

BUILDERS: dict[str, Callable[..., Detector]] = {
    "yolov8n": partial(yolov8.build, "n"),
    "yolov8s": partial(yolov8.build, "s"),
    "yolov8m": partial(yolov8.build, "m"),
    "yolov8l": partial(yolov8.build, "l"),
    "yolov8x": partial(yolov8.build, "x"),
    "yolo11n": partial(yolo11.build, "n"),
    "yolo11s": partial(yolo11.build, "s"),
    "yolo11m": partial(yolo11.build, "m"),
    "yolo11l": partial(yolo11.build, "l"),
    "yolo11x": partial(yolo11.build, "x"),
}


def names() -> tuple[str, ...]:
    """The names that `build` takes."""
    return tuple(BUILDERS)


def build(name: str, num_classes: int, channels: int = 3, **arguments: Any) -> Detector:
    """The detector `name` with fresh weights, in training mode, on the default device.

    `arguments` are the family's own (see `build` in its file): what `model_arguments` of a weight file holds beyond
    the class count and the channels. Raises UsageError for a name that isn't there.
    """
    if name not in BUILDERS:
        near = difflib.get_close_matches(name, BUILDERS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"unknown model {name!r}: {hint}The models are {', '.join(BUILDERS)}.")
    return BUILDERS[name](num_classes=num_classes, channels=channels, **arguments)
