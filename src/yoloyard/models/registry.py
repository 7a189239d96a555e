"""The models there are, by name."""

import difflib
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import PurePath
from typing import Any

from yoloyard.common.errors import UsageError
from yoloyard.models import custom_model, yolo11, yolo12, yolo26, yolov5, yolov8, yolov9, yolov13
from yoloyard.models.detector import Detector

# A family's `build` and its sizes
FAMILIES: dict[str, tuple[Callable[..., Detector], str]] = {
    "yolov5": (yolov5.build, "n s m l x n6 s6 m6 l6 x6"),
    "yolov8": (yolov8.build, "n s m l x n-p2 s-p2 m-p2 l-p2 x-p2"),
    "yolo11": (yolo11.build, "n s m l x n-p2 s-p2 m-p2 l-p2 x-p2"),
    "yolo12": (yolo12.build, "n s m l x"),
    "yolo26": (yolo26.build, "n s m l x"),
    "yolov13": (yolov13.build, "n s l x"),
    "yolov9": (yolov9.YOLOv9, "t s m c"),
}
BUILDERS = {  # by a model's name
    f"{family}{size}": partial(builder, size) for family, (builder, sizes) in FAMILIES.items() for size in sizes.split()
}


def families_with_paths() -> list[str]:
    """The families whose heads may have branches that find each object once."""
    return [family for family, (builder, _) in FAMILIES.items() if "paths" in signature(builder).parameters]


def plain_name(model: str) -> str:
    """`yolo11n` of `YOLO11n`, `yolo11n.yaml` and `models/yolo11n.yaml`, as others name it; any other text as it is."""
    path = PurePath(model)
    name = (path.stem if path.suffix.lower() in (".yaml", ".yml") else model).lower()
    return name if name in BUILDERS else model


def build(name: str, num_classes: int, channels: int = 3, **arguments: Any) -> Detector:
    """The detector `name` with fresh weights, in training mode, on the default device.

    `name` is one of `BUILDERS` or a custom model, `my_model.py:build`. `arguments` are the family's own (see
    `build` in its file): what `model_arguments` of a weight file holds beyond the class count and the channels.
    Raises UsageError for a name that isn't there.
    """
    if custom_model.is_custom(name):
        return custom_model.read_custom(name).build(num_classes, channels)
    name = plain_name(name)
    if name not in BUILDERS:
        near = difflib.get_close_matches(name, BUILDERS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"unknown model {name!r}: {hint}The models are {', '.join(BUILDERS)}; one of your own: FILE.py:FUNCTION; "
            "a weights file ends in .safetensors, .pt or .pth."
        )
    detector = BUILDERS[name](num_classes=num_classes, channels=channels, **arguments)
    detector.image_channels = channels
    return detector
