"""The models there are, by name."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from yoloyard.errors import UsageError
from yoloyard.models import own_model, yolo11, yolo12, yolov5, yolov8
from yoloyard.models.detector import Detector

BUILDERS: dict[str, Callable[..., Detector]] = {
    "yolov5n": partial(yolov5.build, "n"),
    "yolov5s": partial(yolov5.build, "s"),
    "yolov5m": partial(yolov5.build, "m"),
    "yolov5l": partial(yolov5.build, "l"),
    "yolov5x": partial(yolov5.build, "x"),
    "yolov5n6": partial(yolov5.build, "n6"),
    "yolov5s6": partial(yolov5.build, "s6"),
    "yolov5m6": partial(yolov5.build, "m6"),
    "yolov5l6": partial(yolov5.build, "l6"),
    "yolov5x6": partial(yolov5.build, "x6"),
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
    "yolo12n": partial(yolo12.build, "n"),
    "yolo12s": partial(yolo12.build, "s"),
    "yolo12m": partial(yolo12.build, "m"),
    "yolo12l": partial(yolo12.build, "l"),
    "yolo12x": partial(yolo12.build, "x"),
}


def names() -> tuple[str, ...]:
    """The names that `build` takes."""
    return tuple(BUILDERS)


def build(name: str, num_classes: int, channels: int = 3, **arguments: Any) -> Detector:
    """The detector `name` with fresh weights, in training mode, on the default device.

    `name` is one of `names()` or a file of the user's, `my_model.py:build`. `arguments` are the family's own (see
    `build` in its file): what `model_arguments` of a weight file holds beyond the class count and the channels.
    Raises UsageError for a name that isn't there.
    """
    if own_model.is_own(name):
        return own_model.read_own(name).build(num_classes)
    if name not in BUILDERS:
        near = difflib.get_close_matches(name, BUILDERS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"unknown model {name!r}: {hint}The models are {', '.join(BUILDERS)}; one of your own: FILE.py:FUNCTION."
        )
    return BUILDERS[name](num_classes=num_classes, channels=channels, **arguments)
