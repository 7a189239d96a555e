"""YOLO12 (2025): area attention in the deep stages, no pyramid pooling, the neck and head of YOLO11.

Shapes: B batch, H W pixels of the input, C classes. p3, p4, p5 are feature maps with 8, 16, 32 pixels a cell; the
number in a block's name is the level that it makes. Source: Tian et al., "YOLOv12: Attention-Centric Real-Time Object
Detectors" (2025), and the published layer table.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from yoloyard.models import yolo11
from yoloyard.models.blocks import A2C2f, C3k2, Conv
from yoloyard.models.detector import Detector, Scale
from yoloyard.models.heads import AnchorFreeHead

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


class Neck(nn.Module):
    """p3, p4, p5 to three maps of the same sizes that have seen each other: once down the pyramid, once up again."""

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

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        down4 = self.top_down4(torch.cat((interpolate(p5, scale_factor=2.0), p4), dim=1))
        down3 = self.top_down3(torch.cat((interpolate(down4, scale_factor=2.0), p3), dim=1))
        up4 = self.bottom_up4(torch.cat((self.downsample4(down3), down4), dim=1))
        up5 = self.bottom_up5(torch.cat((self.downsample5(up4), p5), dim=1))
        return down3, up4, up5


class YOLO12(Detector):
    """Images (B, channels, H, W), float 0 .. 1, to three raw maps (B, 64 + C, H / stride, W / stride)."""

    def __init__(
        self, scale: Scale, all_c3k: bool, residual: bool, num_classes: int, channels: int, class_width: int | None
    ) -> None:
        super().__init__()
        self.backbone = Backbone(scale, all_c3k, residual, channels)
        self.neck = Neck(scale)
        widths = [scale.channels(c) for c in (256, 512, 1024)]
        self.head = AnchorFreeHead(widths, num_classes, (8, 16, 32), depthwise=True, class_width=class_width)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.head(self.neck(*self.backbone(images)))

    @property
    def blocks(self) -> list[nn.Module | None]:
        """The 22 layers of the published table; None stands for an upsampling or a concatenation."""
        neck = self.neck
        top_down = [None, None, neck.top_down4, None, None, neck.top_down3]
        bottom_up = [neck.downsample4, None, neck.bottom_up4, neck.downsample5, None, neck.bottom_up5]
        return [*self.backbone.children(), *top_down, *bottom_up, self.head]


def build(scale: str, num_classes: int, channels: int = 3, class_width: int | None = None) -> YOLO12:
    """A YOLO12 of the size n, s, m, l or x with fresh weights; `class_width` fits it to imported files."""
    all_c3k = scale in yolo11.ALL_C3K
    return YOLO12(SCALES[scale], all_c3k, scale in RESIDUAL, num_classes, channels, class_width)
