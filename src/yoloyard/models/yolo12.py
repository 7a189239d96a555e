"""YOLO12 (2025): area attention in the deep stages, no pyramid pooling, the neck and head of YOLO11.

Names and shapes are those of `pyramid`. Source: Tian et al., "YOLOv12: Attention-Centric Real-Time Object
Detectors" (2025), and the published layer table.
"""

from functools import partial

from yoloyard.models import yolo11
from yoloyard.models.attention import A2C2f
from yoloyard.models.blocks import C3k2
from yoloyard.models.detector import Scale
from yoloyard.models.pyramid import PathAggregation, PyramidBackbone, PyramidDetector

SCALES = yolo11.SCALES
RESIDUAL = "lx"  # sizes whose attention stages are scaled and added to their input, with narrower feed-forwards


class Neck(PathAggregation):
    """The neck, of A2C2f stages without attention and a C3k2 stage."""

    def __init__(self, scale: Scale) -> None:
        repeats = scale.repeats(2)
        coarsest_stage = partial(C3k2, repeats=repeats, c3k=True)
        super().__init__(scale, yolo11.STAGE_WIDTHS, partial(A2C2f, repeats=repeats), coarsest_stage)


def build(
    scale: str, num_classes: int, channels: int = 3, class_width: int | None = None, paths: str = "many"
) -> PyramidDetector:
    """A YOLO12 of the size n, s, m, l or x with fresh weights, whose head has these `paths`.

    `class_width` fits it to imported files.
    """
    size, residual = SCALES[scale], scale in RESIDUAL
    shallow = partial(C3k2, repeats=size.repeats(2), c3k=scale in yolo11.ALL_C3K, expansion=0.25)
    deep = partial(A2C2f, repeats=size.repeats(4), residual=residual, expansion=1.2 if residual else 2.0)
    stages = (shallow, shallow, partial(deep, areas=4), partial(deep, areas=1))
    backbone = PyramidBackbone(size, channels, yolo11.STAGE_WIDTHS, stages)
    return PyramidDetector(
        size, backbone, Neck(size), num_classes, depthwise=True, class_width=class_width, paths=paths
    )
