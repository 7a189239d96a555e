"""YOLOv8 (2023): C2f stages, SPPF, a path-aggregation neck, an anchor-free head with plain class branches.

Names and shapes are those of `pyramid`. Source: the YOLOv8 release (2023) and its published layer table.
"""

from torch import Tensor, nn

from yoloyard.models.blocks import SPPF, C2f, Conv
from yoloyard.models.detector import Scale
from yoloyard.models.heads import AnchorFreeHead
from yoloyard.models.pyramid import PathAggregation, PyramidDetector

SCALES = {
    "n": Scale(depth=0.33, width=0.25, max_channels=1024),
    "s": Scale(depth=0.33, width=0.50, max_channels=1024),
    "m": Scale(depth=0.67, width=0.75, max_channels=768),
    "l": Scale(depth=1.00, width=1.00, max_channels=512),
    "x": Scale(depth=1.00, width=1.25, max_channels=512),
}


class Backbone(nn.Module):
    """Images (B, channels, H, W) to the maps p3, p4, p5."""

    def __init__(self, scale: Scale, channels: int, sppf_activation: bool) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (scale.channels(c) for c in (64, 128, 256, 512, 1024))
        shallow, deep = scale.repeats(3), scale.repeats(6)
        self.downsample1 = Conv(channels, c1, 3, stride=2)
        self.downsample2 = Conv(c1, c2, 3, stride=2)
        self.stage2 = C2f(c2, c2, shallow, shortcut=True)
        self.downsample3 = Conv(c2, c3, 3, stride=2)
        self.stage3 = C2f(c3, c3, deep, shortcut=True)
        self.downsample4 = Conv(c3, c4, 3, stride=2)
        self.stage4 = C2f(c4, c4, deep, shortcut=True)
        self.downsample5 = Conv(c4, c5, 3, stride=2)
        self.stage5 = C2f(c5, c5, shallow, shortcut=True)
        self.pool = SPPF(c5, c5, activate_in=sppf_activation)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p2 = self.stage2(self.downsample2(self.downsample1(images)))
        p3 = self.stage3(self.downsample3(p2))
        p4 = self.stage4(self.downsample4(p3))
        p5 = self.pool(self.stage5(self.downsample5(p4)))
        return p3, p4, p5


class Neck(PathAggregation):
    """The neck, of C2f stages without shortcuts."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        c3, c4, c5 = (scale.channels(c) for c in (256, 512, 1024))
        repeats = scale.repeats(3)
        self.top_down4 = C2f(c5 + c4, c4, repeats, shortcut=False)
        self.top_down3 = C2f(c4 + c3, c3, repeats, shortcut=False)
        self.downsample4 = Conv(c3, c3, 3, stride=2)
        self.bottom_up4 = C2f(c3 + c4, c4, repeats, shortcut=False)
        self.downsample5 = Conv(c4, c4, 3, stride=2)
        self.bottom_up5 = C2f(c4 + c5, c5, repeats, shortcut=False)


def build(
    scale: str, num_classes: int, channels: int = 3, class_width: int | None = None, sppf_activation: bool = True
) -> PyramidDetector:
    """A YOLOv8 of the size n, s, m, l or x with fresh weights; the last two arguments fit it to imported files."""
    size = SCALES[scale]
    widths = [size.channels(c) for c in (256, 512, 1024)]
    return PyramidDetector(
        Backbone(size, channels, sppf_activation),
        Neck(size),
        AnchorFreeHead(widths, num_classes, (8, 16, 32), depthwise=False, class_width=class_width),
    )
