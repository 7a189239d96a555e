"""YOLO12 (2025): area attention in the deep stages, no pyramid pooling, the neck and head of YOLO11.

Names and shapes are those of `pyramid`. Source: Tian et al., "YOLOv12: Attention-Centric Real-Time Object
Detectors" (2025), and the published layer table.
"""

from torch import Tensor, nn

from yoloyard.models import yolo11
from yoloyard.models.blocks import A2C2f, C3k2, Conv
from yoloyard.models.detector import Scale
from yoloyard.models.heads import AnchorFreeHead
from yoloyard.models.pyramid import PathAggregation, PyramidDetector

SCALES = yolo11.SCALES
RESIDUAL = "lx"  # sizes whose attention stages are scaled and added to their input, with narrower feed-forwards


class Backbone(nn.Module):
    """Images (B, channels, H, W) to the maps p3, p4, p5."""

    def __init__(self, scale: Scale, all_c3k: bool, residual: bool, channels: int) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (scale.channels(c) for c in (64, 128, 256, 512, 1024))
        shallow, deep = scale.repeats(2), scale.repeats(4)
        expansion = 1.2 if residual else 2.0
        self.downsample1 = Conv(channels, c1, 3, stride=2)
        self.downsample2 = Conv(c1, c2, 3, stride=2)
        self.stage2 = C3k2(c2, c3, shallow, c3k=all_c3k, expansion=0.25)
        self.downsample3 = Conv(c3, c3, 3, stride=2)
        self.stage3 = C3k2(c3, c4, shallow, c3k=all_c3k, expansion=0.25)
        self.downsample4 = Conv(c4, c4, 3, stride=2)
        self.stage4 = A2C2f(c4, c4, deep, areas=4, residual=residual, expansion=expansion)
        self.downsample5 = Conv(c4, c5, 3, stride=2)
        self.stage5 = A2C2f(c5, c5, deep, areas=1, residual=residual, expansion=expansion)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p2 = self.stage2(self.downsample2(self.downsample1(images)))
        p3 = self.stage3(self.downsample3(p2))
        p4 = self.stage4(self.downsample4(p3))
        p5 = self.stage5(self.downsample5(p4))
        return p3, p4, p5


class Neck(PathAggregation):
    """The neck, of A2C2f stages without attention and a C3k2 stage."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        c3, c4, c5 = (scale.channels(c) for c in (256, 512, 1024))
        repeats = scale.repeats(2)
        self.top_down4 = A2C2f(c5 + c4, c4, repeats)
        self.top_down3 = A2C2f(c4 + c4, c3, repeats)
        self.downsample4 = Conv(c3, c3, 3, stride=2)
        self.bottom_up4 = A2C2f(c3 + c4, c4, repeats)
        self.downsample5 = Conv(c4, c4, 3, stride=2)
        self.bottom_up5 = C3k2(c4 + c5, c5, repeats, c3k=True)


def build(scale: str, num_classes: int, channels: int = 3, class_width: int | None = None) -> PyramidDetector:
    """A YOLO12 of the size n, s, m, l or x with fresh weights; `class_width` fits it to imported files."""
    size = SCALES[scale]
    widths = [size.channels(c) for c in (256, 512, 1024)]
    return PyramidDetector(
        Backbone(size, scale in yolo11.ALL_C3K, scale in RESIDUAL, channels),
        Neck(size),
        AnchorFreeHead(widths, num_classes, (8, 16, 32), depthwise=True, class_width=class_width),
    )
