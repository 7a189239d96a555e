"""YOLOv9 (2024) as MultimediaTechLab's MIT implementation has it: reparameterised ELAN stages, an auxiliary branch.

Shapes: B batch, H W pixels of the input. p3, p4, p5 are feature maps with 8, 16, 32 pixels a cell; the number in a
block's name is the level that it makes. Source: Wang et al., "YOLOv9: Learning What You Want to Learn Using
Programmable Gradient Information" (2024), and the layer tables of that implementation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from yoloyard.models.blocks import SPPF, Conv
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AuxiliaryHead
from yoloyard.models.rep_blocks import ELAN, AConv, ADown, Links, RepELAN, with_links

Levels = tuple[Tensor, Tensor, Tensor]  # p3, p4, p5
WITH_SECOND_BACKBONE = "mc"  # sizes whose auxiliary branch is one; that of the others is a second way down


@dataclass(frozen=True)
class Size:
    """Channels of one size; nothing is scaled. Of the levels 3 to 5, each in this order."""

    stem: tuple[int, int]
    stage2: tuple[int, int]  # output channels, and those within
    widths: tuple[int, int, int]  # of the downsampled maps, within the backbone's stages and of the neck
    stages: tuple[int, int, int]  # output channels of the backbone's stages
    bottom_up: tuple[int, int]  # of the downsampling to the levels 4 and 5
    repeats: int
    plain_stage2: bool = True
    down: type[AConv | ADown] = AConv


SIZES = {
    "t": Size((16, 32), (32, 32), (64, 96, 128), (64, 96, 128), (48, 64), 3),
    "s": Size((32, 64), (64, 64), (128, 192, 256), (128, 192, 256), (96, 128), 3),
    "m": Size((32, 64), (128, 128), (240, 360, 480), (240, 360, 480), (184, 240), 1, False),
    "c": Size((64, 128), (256, 128), (256, 512, 512), (512, 512, 512), (256, 512), 1, False, ADown),
}


class Backbone(nn.Module):
    """Images (B, channels, H, W) to p3, p4, p5; its children are in the order of the published layer table."""

    def __init__(self, size: Size, channels: int) -> None:
        super().__init__()
        (c1, c2), (s2, part2) = size.stem, size.stage2
        (w3, w4, w5), (s3, s4, s5) = size.widths, size.stages
        self.downsample1 = Conv(channels, c1, 3, stride=2)
        self.downsample2 = Conv(c1, c2, 3, stride=2)
        self.stage2 = ELAN(c2, s2, part2) if size.plain_stage2 else RepELAN(c2, s2, part2, size.repeats)
        self.downsample3 = size.down(s2, w3)
        self.stage3 = RepELAN(w3, s3, w3, size.repeats)
        self.downsample4 = size.down(s3, w4)
        self.stage4 = RepELAN(w4, s4, w4, size.repeats)
        self.downsample5 = size.down(s4, w5)
        self.stage5 = RepELAN(w5, s5, w5, size.repeats)

    def forward(self, images: Tensor, links: Sequence[Sequence[Tensor]] = ((), (), ())) -> Levels:
        """`links` of another backbone are added before the stages 3, 4 and 5."""
        p2 = self.stage2(self.downsample2(self.downsample1(images)))
        p3 = self.stage3(with_links(self.downsample3(p2), links[0]))
        p4 = self.stage4(with_links(self.downsample4(p3), links[1]))
        return p3, p4, self.stage5(with_links(self.downsample5(p4), links[2]))


class TopDown(nn.Module):
    """p3, p4, p5 to three maps that have seen the coarser ones."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        (s3, s4, s5), (n3, n4, n5) = size.stages, size.widths
        self.pool = SPPF(s5, n5)
        self.top_down4 = RepELAN(n5 + s4, n4, n4, size.repeats)
        self.top_down3 = RepELAN(n4 + s3, n3, n3, size.repeats)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> Levels:
        pooled = self.pool(p5)
        down4 = self.top_down4(torch.cat((interpolate(pooled, scale_factor=2.0), p4), dim=1))
        return self.top_down3(torch.cat((interpolate(down4, scale_factor=2.0), p3), dim=1)), down4, pooled

    @property
    def blocks(self) -> list[nn.Module | None]:
        """The layers of the published table; None stands for an upsampling or a concatenation."""
        return [self.pool, None, None, self.top_down4, None, None, self.top_down3]


class BottomUp(nn.Module):
    """The maps of `TopDown` to three that have seen the finer ones, too."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        (n3, n4, n5), (d4, d5) = size.widths, size.bottom_up
        self.downsample4 = size.down(n3, d4)
        self.bottom_up4 = RepELAN(d4 + n4, n4, n4, size.repeats)
        self.downsample5 = size.down(n4, d5)
        self.bottom_up5 = RepELAN(d5 + n5, n5, n5, size.repeats)

    def forward(self, down3: Tensor, down4: Tensor, pooled: Tensor) -> Levels:
        up4 = self.bottom_up4(torch.cat((self.downsample4(down3), down4), dim=1))
        return down3, up4, self.bottom_up5(torch.cat((self.downsample5(up4), pooled), dim=1))

    @property
    def blocks(self) -> list[nn.Module | None]:
        """As `TopDown.blocks`."""
        return [self.downsample4, None, self.bottom_up4, self.downsample5, None, self.bottom_up5]


class SecondBackbone(nn.Module):
    """A backbone of its own on the image, to which the first one's maps are added."""

    def __init__(self, size: Size, channels: int) -> None:
        super().__init__()
        self.links = nn.ModuleList(Links(width, size.widths[: level + 1]) for level, width in enumerate(size.stages))
        self.backbone = Backbone(size, channels)

    def forward(self, images: Tensor, p3: Tensor, p4: Tensor, p5: Tensor) -> Levels:
        at3, at4, at5 = (link(level) for link, level in zip(self.links, (p3, p4, p5), strict=True))
        return self.backbone(images, ((at3[0], at4[0], at5[0]), (at4[1], at5[1]), (at5[2],)))

    @property
    def blocks(self) -> list[nn.Module | None]:
        """The layers of the published table; None stands for an addition."""
        layers: list[nn.Module | None] = [*self.links, *self.backbone.children()]
        for place in (7, 10, 13):  # before the stages 3, 4 and 5
            layers.insert(place, None)
        return layers


class YOLOv9(Detector):
    """Images (B, channels, H, W), float 0 .. 1, to three raw maps (B, outputs, H / stride, W / stride).

    `scale` is the size t, s, m or c. With the `auxiliary` branch the maps are those of `AuxiliaryHead` with both sets
    of branches. The widths of the class branches fit it to imported files.
    """

    project = "MultimediaTechLab/YOLO"

    def __init__(
        self,
        scale: str,
        num_classes: int,
        channels: int = 3,
        class_width: int | None = None,
        auxiliary: bool = True,
        auxiliary_class_width: int | None = None,
    ) -> None:
        super().__init__()
        size = SIZES[scale]
        self.backbone, self.top_down, self.bottom_up = Backbone(size, channels), TopDown(size), BottomUp(size)
        self.auxiliary: TopDown | SecondBackbone | None = None
        self.has_second_backbone = scale in WITH_SECOND_BACKBONE
        widths = None
        if auxiliary:
            self.auxiliary = SecondBackbone(size, channels) if self.has_second_backbone else TopDown(size)
            widths = size.stages if self.has_second_backbone else size.widths
        self.head = AuxiliaryHead(size.widths, num_classes, (8, 16, 32), widths, class_width, auxiliary_class_width)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.backbone(images)
        maps = self.bottom_up(*self.top_down(*features))
        if self.auxiliary is None:
            return self.head(maps)
        more = self.auxiliary(images, *features) if self.has_second_backbone else self.auxiliary(*features)
        return self.head((*maps, *more))

    def keep_path(self, suppression: bool) -> None:
        """As `Detector.keep_path` says: without the auxiliary branch."""
        super().keep_path(suppression)
        self.auxiliary = None

    @property
    def blocks(self) -> list[nn.Module | None]:
        """The layers of the published table; None stands for one without weights. The head has all branches."""
        own = [*self.backbone.children(), *self.top_down.blocks, *self.bottom_up.blocks, self.head]
        return own if self.auxiliary is None else [*own, *self.auxiliary.blocks]
