"""YOLOv5 7.0 (2020 to 2022): C3 stages, SPPF, a path-aggregation neck, an anchor-based head; P5 and P6 networks.

Shapes: B batch, H W pixels of the input, C classes, L levels. A P5 network has the levels 3, 4, 5 with 8, 16, 32 pixels
a cell, a P6 network one more with 64. Source: the YOLOv5 release 7.0 and its published layer tables; the neck is that
of Liu et al., "PANet" (2018).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from yoloyard.models.blocks import C3, SPPF, Conv
from yoloyard.models.detector import Detector, Scale
from yoloyard.models.heads import AnchorBasedHead

SCALES = {
    "n": Scale(depth=0.33, width=0.25, max_channels=1024),
    "s": Scale(depth=0.33, width=0.50, max_channels=1024),
    "m": Scale(depth=0.67, width=0.75, max_channels=1024),
    "l": Scale(depth=1.00, width=1.00, max_channels=1024),
    "x": Scale(depth=1.33, width=1.25, max_channels=1024),
}
P5_WIDTHS = (256, 512, 1024)  # of the levels, before scaling
P6_WIDTHS = (256, 512, 768, 1024)
# width and height in pixels, three a level, for networks trained with 640 and 1280 pixels
P5_ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
P6_ANCHORS = (
    ((19, 27), (44, 40), (38, 94)),
    ((96, 68), (86, 152), (180, 137)),
    ((140, 301), (303, 264), (238, 542)),
    ((436, 615), (739, 380), (925, 792)),
)


class Backbone(nn.Module):
    """Images (B, channels, H, W) to one map a level, finest first."""

    def __init__(self, scale: Scale, level_widths: Sequence[int], channels: int, sppf_activation: bool) -> None:
        super().__init__()
        stem = scale.channels(64)
        widths = [scale.channels(c) for c in (128, *level_widths)]
        repeats = [scale.repeats(n) for n in (3, 6, 9, 3, 3)]
        self.stem = Conv(channels, stem, 6, stride=2, padding=2)
        self.downsamples = nn.ModuleList(
            Conv(inner, outer, 3, stride=2) for inner, outer in zip([stem, *widths], widths, strict=False)
        )
        self.stages = nn.ModuleList(C3(c, c, n, shortcut=True) for c, n in zip(widths, repeats, strict=False))
        self.pool = SPPF(widths[-1], widths[-1], sppf_activation)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for downsample, stage in zip(self.downsamples, self.stages, strict=True):
            maps.append(stage(downsample(maps[-1])))
        return [*maps[2:-1], self.pool(maps[-1])]


class Neck(nn.Module):
    """One map a level to maps of the same sizes that have seen each other: once down the pyramid, once up again.

    All lists go from the finest level to the coarsest.
    """

    def __init__(self, scale: Scale, level_widths: Sequence[int]) -> None:
        super().__init__()
        widths = [scale.channels(c) for c in level_widths]
        pairs = list(pairwise(widths))  # of neighbouring levels
        repeats = scale.repeats(3)
        self.laterals = nn.ModuleList(Conv(coarse, fine) for fine, coarse in pairs)
        self.top_down = nn.ModuleList(C3(2 * fine, fine, repeats, shortcut=False) for fine, _ in pairs)
        self.downsamples = nn.ModuleList(Conv(fine, fine, 3, stride=2) for fine, _ in pairs)
        self.bottom_up = nn.ModuleList(C3(2 * fine, coarse, repeats, shortcut=False) for fine, coarse in pairs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        down = maps[-1]
        narrowed: list[Tensor] = []
        for level in reversed(range(len(maps) - 1)):
            narrow = self.laterals[level](down)
            narrowed.insert(0, narrow)
            down = self.top_down[level](torch.cat((interpolate(narrow, scale_factor=2.0), maps[level]), dim=1))
        results = [down]
        for downsample, narrow, block in zip(self.downsamples, narrowed, self.bottom_up, strict=True):
            results.append(block(torch.cat((downsample(results[-1]), narrow), dim=1)))
        return results


class YOLOv5(Detector):
    """Images (B, channels, H, W), float 0 .. 1, to L raw maps (B, 3 * (5 + C), H / stride, W / stride)."""

    project = "yolov5"

    def __init__(self, scale: Scale, p6: bool, num_classes: int, channels: int, sppf_activation: bool) -> None:
        super().__init__()
        level_widths, anchors = (P6_WIDTHS, P6_ANCHORS) if p6 else (P5_WIDTHS, P5_ANCHORS)
        self.backbone = Backbone(scale, level_widths, channels, sppf_activation)
        self.neck = Neck(scale, level_widths)
        widths = [scale.channels(c) for c in level_widths]
        self.head = AnchorBasedHead(widths, num_classes, (8, 16, 32, 64)[: len(widths)], anchors)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.head(self.neck(self.backbone(images)))

    @property
    def blocks(self) -> list[nn.Module | None]:
        """The 25 (P6: 34) layers of the published table; None stands for an upsampling or a concatenation."""
        backbone, neck = self.backbone, self.neck
        blocks: list[nn.Module | None] = [backbone.stem]
        for pair in zip(backbone.downsamples, backbone.stages, strict=True):
            blocks += pair
        blocks.append(backbone.pool)
        for lateral, block in zip(reversed(neck.laterals), reversed(neck.top_down), strict=True):
            blocks += [lateral, None, None, block]
        for downsample, block in zip(neck.downsamples, neck.bottom_up, strict=True):
            blocks += [downsample, None, block]
        return [*blocks, self.head]


def build(scale: str, num_classes: int, channels: int = 3, sppf_activation: bool = True) -> YOLOv5:
    """A YOLOv5 of the size n, s, m, l, x or, with a fourth level, n6 ... x6, with fresh weights."""
    return YOLOv5(SCALES[scale.removesuffix("6")], scale.endswith("6"), num_classes, channels, sppf_activation)
