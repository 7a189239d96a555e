"""Train YOLO object detectors on your own images, in plain PyTorch.

`yoloyard.train(model="yolo11n", data="factory.yaml", epochs=100)` and `yoloyard.load("best.safetensors")(image)` are
the commands of the same names. torch is imported when one of them is first used.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from yoloyard.common.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from yoloyard.commands.model import Model
    from yoloyard.training.listeners.events import Listener, Result

__all__ = ["load", "train"]

Function = TypeVar("Function", bound="Callable[..., Any]")


def _checked(function: Function) -> Function:
    """Let the function raise UsageError where arguments are missing, too many or given twice."""

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        try:
            inspect.signature(function).bind(*args, **named)
        except TypeError as error:
            raise UsageError(f"yoloyard.{function.__name__}: {error}") from None
        return function(*args, **named)

    return call  # type: ignore[return-value]


@_checked
def train(
    resume: str | Path | bool | None = None,
    on_event: Listener | Sequence[Listener] | None = None,
    transform: str | Callable[..., Any] | None = None,
    **overrides: Any,
) -> Result:
    """Train a detector; `overrides` are the flags of `yoloyard train`. `on_event`, a function or a list of them, is
    called with each event.

    `transform` changes training images: `image, boxes, labels = transform(image, boxes, labels)`, an Albumentations
    pipeline, or FILE.py:NAME of one of these.
    Raises yoloyard.common.errors.UserError with what to do, Interrupted after Ctrl-C with everything saved.
    """
    from yoloyard.commands.train import train as run

    if isinstance(transform, str):
        return run(overrides | {"transform": transform}, resume, on_event)
    return run(overrides, resume, on_event, transform)


@_checked
def load(weights: str | Path, device: str | int | torch.device | None = "auto", **settings: Any) -> Model:
    """The model of a weights file: `model(image)` gives Detections for a path, a uint8 RGB array (height, width, 3),
    a PIL image, or a list of these.

    An exported file will do, too; `names` are the classes of one that doesn't say them.
    `settings`: imgsz, conf, iou, max_det, suppression, names. Raises yoloyard.common.errors.UserError with what to do.
    """
    from yoloyard.commands.model import Model

    return Model(weights, device, **settings)
