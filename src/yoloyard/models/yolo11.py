"""YOLO11 (2024): C3k2 stages, SPPF and attention, a path-aggregation neck, a head with depthwise class branches.

Names and shapes are those of `pyramid`. Source: the YOLO11 release (2024) and its published layer table.
"""

from torch import Tensor, nn

from yoloyard.models.blocks import C2PSA, SPPF, C3k2, Conv
from yoloyard.models.detector import Scale
from yoloyard.models.heads import AnchorFreeHead
from yoloyard.models.pyramid import PathAggregation, PyramidDetector

SCALES = {
    "n": Scale(depth=0.50, width=0.25, max_channels=1024),
    "s": Scale(depth=0.50, width=0.50, max_channels=1024),
    "m": Scale(depth=0.50, width=1.00, max_channels=512),
    "l": Scale(depth=1.00, width=1.00, max_channels=512),
    "x": Scale(depth=1.00, width=1.50, max_channels=512),
}
ALL_C3K = "mlx"  # sizes whose every stage is made of C3k; n and s have them at the deepest stages only


class Backbone(nn.Module):
    """Images (B, channels, H, W) to the maps p3, p4, p5."""

    def __init__(self, scale: Scale, all_c3k: bool, channels: int, sppf_activation: bool) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (scale.channels(c) for c in (64, 128, 256, 512, 1024))
        repeats = scale.repeats(2)
        self.downsample1 = Conv(channels, c1, 3, stride=2)
        self.downsample2 = Conv(c1, c2, 3, stride=2)
        self.stage2 = C3k2(c2, c3, repeats, c3k=all_c3k, expansion=0.25)
        self.downsample3 = Conv(c3, c3, 3, stride=2)
        self.stage3 = C3k2(c3, c4, repeats, c3k=all_c3k, expansion=0.25)
        self.downsample4 = Conv(c4, c4, 3, stride=2)
        self.stage4 = C3k2(c4, c4, repeats, c3k=True)
        self.downsample5 = Conv(c4, c5, 3, stride=2)
        self.stage5 = C3k2(c5, c5, repeats, c3k=True)
        self.pool = SPPF(c5, c5, activate_in=sppf_activation)
        self.attention = C2PSA(c5, repeats)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p2 = self.stage2(self.downsample2(self.downsample1(images)))
        p3 = self.stage3(self.downsample3(p2))
        p4 = self.stage4(self.downsample4(p3))
        p5 = self.attention(self.pool(self.stage5(self.downsample5(p4))))
        return p3, p4, p5


class Neck(PathAggregation):
    """The neck, of C3k2 stages."""

    def __init__(self, scale: Scale, all_c3k: bool) -> None:
        super().__init__()
        c3, c4, c5 = (scale.channels(c) for c in (256, 512, 1024))
        repeats = scale.repeats(2)
        self.top_down4 = C3k2(c5 + c4, c4, repeats, c3k=all_c3k)
        self.top_down3 = C3k2(c4 + c4, c3, repeats, c3k=all_c3k)
        self.downsample4 = Conv(c3, c3, 3, stride=2)
        self.bottom_up4 = C3k2(c3 + c4, c4, repeats, c3k=all_c3k)
        self.downsample5 = Conv(c4, c4, 3, stride=2)
        self.bottom_up5 = C3k2(c4 + c5, c5, repeats, c3k=True)


def build(
    scale: str, num_classes: int, channels: int = 3, class_width: int | None = None, sppf_activation: bool = True
) -> PyramidDetector:
    """A YOLO11 of the size n, s, m, l or x with fresh weights; the last two arguments fit it to imported files."""
    size, all_c3k = SCALES[scale], scale in ALL_C3K
    widths = [size.channels(c) for c in (256, 512, 1024)]
    return PyramidDetector(
        Backbone(size, all_c3k, channels, sppf_activation),
        Neck(size, all_c3k),
        AnchorFreeHead(widths, num_classes, (8, 16, 32), depthwise=True, class_width=class_width),
    )
