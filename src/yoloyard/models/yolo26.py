"""YOLO26 (2026): YOLO11 with attention at the end of the neck and branches that find each object once.

Its boxes are plain distances, without a distribution. Names and shapes are those of `pyramid`. Source: the YOLO26
release (2026) and its published layer table.
"""

from functools import partial

from yoloyard.models import yolo11
from yoloyard.models.attention import C2PSA, AttendedStack
from yoloyard.models.blocks import SPPF, C3k2
from yoloyard.models.detector import Scale
from yoloyard.models.pyramid import PathAggregation, PyramidBackbone, PyramidDetector

SCALES = yolo11.SCALES


class Neck(PathAggregation):
    """The neck, of C3k2 stages of C3k, and attention in the stage of the coarsest map."""

    def __init__(self, scale: Scale) -> None:
        stage = partial(C3k2, repeats=scale.repeats(2), c3k=True)
        super().__init__(scale, yolo11.STAGE_WIDTHS, stage, AttendedStack)


def build(
    scale: str, num_classes: int, channels: int = 3, class_width: int | None = None, paths: str = "both"
) -> PyramidDetector:
    """A YOLO26 of the size n, s, m, l or x with fresh weights, whose head has these `paths`.

    `class_width` fits it to imported files; files that were fused for inference have one of the `paths`.
    """
    size = SCALES[scale]
    stage = partial(C3k2, repeats=size.repeats(2))
    shallow, deep = partial(stage, c3k=scale in yolo11.ALL_C3K, expansion=0.25), partial(stage, c3k=True)
    backbone = PyramidBackbone(
        size,
        channels,
        yolo11.STAGE_WIDTHS,
        (shallow, shallow, deep, deep),
        pool=lambda width: SPPF(width, width, activate_in=False, add=True),
        attention=partial(C2PSA, repeats=size.repeats(2)),
    )
    return PyramidDetector(
        size, backbone, Neck(size), num_classes, depthwise=True, class_width=class_width, paths=paths, bins=1
    )
