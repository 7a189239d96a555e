"""YOLOv8 (2023): C2f stages, SPPF, a path-aggregation neck, an anchor-free head with plain class branches.

Names and shapes are those of `pyramid`. Source: the YOLOv8 release (2023) and its published layer table.
"""

from functools import partial

from torch import Tensor

from yoloyard.models.blocks import SPPF, C2f
from yoloyard.models.detector import Scale
from yoloyard.models.pyramid import PathAggregation, PyramidBackbone, PyramidDetector

SCALES = {
    "n": Scale(depth=0.33, width=0.25, max_channels=1024),
    "s": Scale(depth=0.33, width=0.50, max_channels=1024),
    "m": Scale(depth=0.67, width=0.75, max_channels=768),
    "l": Scale(depth=1.00, width=1.00, max_channels=512),
    "x": Scale(depth=1.00, width=1.25, max_channels=512),
}


class Backbone(PyramidBackbone):
    """The backbone, of C2f stages and SPPF."""

    def __init__(self, scale: Scale, channels: int, sppf_activation: bool) -> None:
        shallow = partial(C2f, repeats=scale.repeats(3), shortcut=True)
        deep = partial(C2f, repeats=scale.repeats(6), shortcut=True)
        super().__init__(scale, channels, (128, 256, 512, 1024), (shallow, deep, deep, shallow))
        self.pool = SPPF(scale.channels(1024), scale.channels(1024), sppf_activation)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p3, p4, p5 = super().forward(images)
        return p3, p4, self.pool(p5)


class Neck(PathAggregation):
    """The neck, of C2f stages without shortcuts."""

    def __init__(self, scale: Scale) -> None:
        stage = partial(C2f, repeats=scale.repeats(3), shortcut=False)
        super().__init__(scale, scale.channels(256), stage, stage)


def build(
    scale: str, num_classes: int, channels: int = 3, class_width: int | None = None, sppf_activation: bool = True
) -> PyramidDetector:
    """A YOLOv8 of the size n, s, m, l or x with fresh weights; the last two arguments fit it to imported files."""
    size = SCALES[scale]
    backbone = Backbone(size, channels, sppf_activation)
    return PyramidDetector(size, backbone, Neck(size), num_classes, depthwise=False, class_width=class_width)
