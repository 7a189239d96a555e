"""What YOLOv8, YOLO11, YOLO12 and YOLOv13 share: three levels, and a neck that goes down the pyramid and up again.

Shapes: B batch, H W pixels of the input. p3, p4, p5 are feature maps with 8, 16, 32 pixels a cell; the number in a
block's name is the level that it makes. Models for small objects, whose names end in P2, also have the level p2 of 4
pixels a cell.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from yoloyard.models.blocks import Conv
from yoloyard.models.detector import Detector, Scale
from yoloyard.models.heads import AnchorFreeHead, EndToEndHead
from yoloyard.models.heads.anchor_free import BINS

PATHS = ("many", "one", "both")
P2 = "-p2"  # how the sizes end that have four levels
P2_WIDTH, LEVEL_WIDTHS = 128, (256, 512, 1024)  # before scaling
STRIDES = (4, 8, 16, 32)
Stage = Callable[[int, int], nn.Module]  # makes a block for so many input and output channels
DOWNSAMPLES = (partial(Conv, kernel=3, stride=2),) * 5


class PyramidBackbone(nn.Module):
    """Images (B, channels, H, W) to p3, p4, p5: five strided convolutions, a stage behind each of the last four.

    `stage_widths` are the output channels of the stages 2 to 5 before scaling. `last` are the blocks behind them by
    their names, each made for p5's channels. `downsamples` make what halves the map. With four `levels` it gives p2
    before the others.
    """

    def __init__(
        self,
        scale: Scale,
        channels: int,
        stage_widths: tuple[int, int, int, int],
        stages: Sequence[Stage],
        downsamples: Sequence[Stage] = DOWNSAMPLES,
        levels: int = 3,
        **last: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.levels = levels
        c1, c2, c3, c4, c5 = (scale.channels(c) for c in (64, P2_WIDTH, *LEVEL_WIDTHS))
        s2, s3, s4, s5 = (scale.channels(c) for c in stage_widths)
        self.downsample1 = downsamples[0](channels, c1)
        self.downsample2 = downsamples[1](c1, c2)
        self.stage2 = stages[0](c2, s2)
        self.downsample3 = downsamples[2](s2, c3)
        self.stage3 = stages[1](c3, s3)
        self.downsample4 = downsamples[3](s3, c4)
        self.stage4 = stages[2](c4, s4)
        self.downsample5 = downsamples[4](s4, c5)
        self.stage5 = stages[3](c5, s5)
        self.last = tuple(last)
        for name, make in last.items():
            self.add_module(name, make(s5))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        p2 = self.stage2(self.downsample2(self.downsample1(images)))
        p3 = self.stage3(self.downsample3(p2))
        p4 = self.stage4(self.downsample4(p3))
        p5 = self.stage5(self.downsample5(p4))
        for name in self.last:
            p5 = self.get_submodule(name)(p5)
        return (p2, p3, p4, p5)[-self.levels :]


class PathAggregation(nn.Module):
    """p3, p4, p5 to three maps that have seen each other: once down the pyramid, once up again.

    With `has_p2` there are four maps: p2 comes first. `stage_widths` are those of the backbone. All blocks are made by
    `stage` but that of the coarsest map. Source: Liu et al., "PANet" (2018).
    """

    def __init__(
        self, scale: Scale, stage_widths: Sequence[int], stage: Stage, coarsest_stage: Stage, has_p2: bool = False
    ) -> None:
        super().__init__()
        p2_width, p3_width = map(scale.channels, stage_widths[:2])
        c3, c4, c5 = (scale.channels(c) for c in LEVEL_WIDTHS)
        self.top_down4 = stage(c5 + c4, c4)
        self.top_down3 = stage(c4 + p3_width, c3)
        self.downsample4 = Conv(c3, c3, 3, stride=2)
        self.bottom_up4 = stage(c3 + c4, c4)
        self.downsample5 = Conv(c4, c4, 3, stride=2)
        self.bottom_up5 = coarsest_stage(c4 + c5, c5)
        if has_p2:
            c2 = scale.channels(P2_WIDTH)
            self.top_down2 = stage(c3 + p2_width, c2)
            self.downsample3 = Conv(c2, c2, 3, stride=2)
            self.bottom_up3 = stage(c2 + c3, c3)

    def forward(self, *levels: Tensor) -> tuple[Tensor, ...]:
        *p2, p3, p4, p5 = levels
        down4 = self.top_down4(torch.cat((interpolate(p5, scale_factor=2.0), p4), dim=1))
        down3 = self.top_down3(torch.cat((interpolate(down4, scale_factor=2.0), p3), dim=1))
        finest = [self.top_down2(torch.cat((interpolate(down3, scale_factor=2.0), *p2), dim=1))] if p2 else []
        up3 = self.bottom_up3(torch.cat((self.downsample3(*finest), down3), dim=1)) if finest else down3
        up4 = self.bottom_up4(torch.cat((self.downsample4(up3), down4), dim=1))
        up5 = self.bottom_up5(torch.cat((self.downsample5(up4), p5), dim=1))
        return *finest, up3, up4, up5


def has_p2(state: Iterable[str]) -> bool:
    """Are these names of tensors those of a network with the level p2?"""
    return any(name.startswith("neck.top_down2.") for name in state)


class PyramidDetector(Detector):
    """Images (B, channels, H, W), float 0 .. 1, to a raw map (B, outputs, H / stride, W / stride) of each level.

    The children of `backbone` are in the order of the published layer table. `depthwise`, `class_width`, `bins` and
    `box_bias` are those of `AnchorFreeHead`. `paths`: branches that find each object "many" times, "one" time, "both".
    """

    project = "ultralytics"

    def __init__(
        self,
        scale: Scale,
        backbone: PyramidBackbone,
        neck: PathAggregation,
        num_classes: int,
        depthwise: bool,
        class_width: int | None,
        paths: str = "many",
        bins: int = BINS,
        box_bias: float = 2.0,
    ) -> None:
        super().__init__()
        if paths not in PATHS:
            raise ValueError(f"paths is {paths!r}, not one of {', '.join(PATHS)}")
        self.backbone, self.neck = backbone, neck
        widths = [scale.channels(c) for c in (P2_WIDTH, *LEVEL_WIDTHS)[-backbone.levels :]]
        kind = EndToEndHead if paths == "both" else AnchorFreeHead
        arguments = (widths, num_classes, STRIDES[-backbone.levels :], depthwise, class_width)
        self.head = kind(*arguments, bins=bins, box_bias=box_bias, needs_suppression=paths != "one")

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.head(self.neck(*self.backbone(images)))

    @property
    def blocks(self) -> list[nn.Module | None]:
        """The layers of the published table; None stands for an upsampling or a concatenation."""
        neck = self.neck
        top_down = [None, None, neck.top_down4, None, None, neck.top_down3]
        bottom_up = [neck.downsample4, None, neck.bottom_up4, neck.downsample5, None, neck.bottom_up5]
        if self.backbone.levels == 4:
            top_down += [None, None, neck.top_down2]
            bottom_up = [neck.downsample3, None, neck.bottom_up3, *bottom_up]
        return [*self.backbone.children(), *top_down, *bottom_up, self.head]
