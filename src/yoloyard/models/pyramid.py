"""What YOLOv8, YOLO11 and YOLO12 share: a detector of three levels whose neck goes down the pyramid and up again.

Shapes: B batch, H W pixels of the input. p3, p4, p5 are feature maps with 8, 16, 32 pixels a cell; the number in a
block's name is the level that it makes.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from yoloyard.models.detector import Detector
from yoloyard.models.heads import Head


class PathAggregation(nn.Module):
    """p3, p4, p5 to three maps of the same sizes that have seen each other: once down the pyramid, once up again.

    A family's neck makes the six blocks. Source: Liu et al., "PANet" (2018).
    """

    top_down4: nn.Module
    top_down3: nn.Module
    downsample4: nn.Module
    bottom_up4: nn.Module
    downsample5: nn.Module
    bottom_up5: nn.Module

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        down4 = self.top_down4(torch.cat((interpolate(p5, scale_factor=2.0), p4), dim=1))
        down3 = self.top_down3(torch.cat((interpolate(down4, scale_factor=2.0), p3), dim=1))
        up4 = self.bottom_up4(torch.cat((self.downsample4(down3), down4), dim=1))
        up5 = self.bottom_up5(torch.cat((self.downsample5(up4), p5), dim=1))
        return down3, up4, up5


class PyramidDetector(Detector):
    """Images (B, channels, H, W), float 0 .. 1, to the three raw maps of `head` (B, K, H / stride, W / stride).

    `backbone` gives p3, p4, p5; its children are in the order of the published layer table.
    """

    def __init__(self, backbone: nn.Module, neck: PathAggregation, head: Head) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = backbone, neck, head

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.head(self.neck(*self.backbone(images)))

    @property
    def blocks(self) -> list[nn.Module | None]:
        """The layers of the published table; None stands for an upsampling or a concatenation."""
        neck = self.neck
        top_down = [None, None, neck.top_down4, None, None, neck.top_down3]
        bottom_up = [neck.downsample4, None, neck.bottom_up4, neck.downsample5, None, neck.bottom_up5]
        return [*self.backbone.children(), *top_down, *bottom_up, self.head]
