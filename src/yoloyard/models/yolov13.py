"""YOLOv13 (2025): separable C3k2 and area attention stages, a hypergraph over all levels that reaches the whole neck.

Names and shapes are those of `pyramid`. Source: Lei et al., "YOLOv13: Real-Time Object Detection with
Hypergraph-Enhanced Adaptive Visual Perception" (2025), and the published layer table.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from yoloyard.models import yolo11
from yoloyard.models.attention import A2C2f, SeparateAreaAttention
from yoloyard.models.blocks import Conv
from yoloyard.models.detector import Scale
from yoloyard.models.hypergraph import Halved, HyperACE, Tunnel
from yoloyard.models.pyramid import DOWNSAMPLES, LEVEL_WIDTHS, PathAggregation, PyramidBackbone, PyramidDetector
from yoloyard.models.separable import SeparableC3k2, SeparableConv

SCALES = {size: yolo11.SCALES[size] for size in "nslx"}
HYPEREDGES = {"n": 4, "s": 8, "l": 8, "x": 12}
LARGE = "lx"  # sizes of C3k throughout, whose attention stages are scaled and added to their input


class Neck(PathAggregation):
    """The neck, whose maps get a share of what the hypergraph finds: behind the backbone, within and at the end."""

    def __init__(self, scale: Scale, hyperedges: int) -> None:
        p3, p4, p5 = (scale.channels(c) for c in yolo11.STAGE_WIDTHS[1:])
        c3, c4, c5 = (scale.channels(c) for c in LEVEL_WIDTHS)
        stage = partial(SeparableC3k2, repeats=scale.repeats(2), c3k=True)
        super().__init__(scale, yolo11.STAGE_WIDTHS, stage, stage)
        self.enhance = HyperACE((p3, p4, p5), c4, scale.repeats(2), hyperedges)
        self.coarser = Halved(c4, c5)
        self.finer = Conv(c4, c3)
        self.tunnels = nn.ModuleList(Tunnel() for _ in range(7))  # in the order of the published layer table

    def forward(self, *levels: Tensor) -> tuple[Tensor, ...]:
        p3, p4, p5 = levels
        tunnels = self.tunnels
        enhanced4 = self.enhance(p3, p4, p5)
        enhanced3, enhanced5 = interpolate(enhanced4, scale_factor=2.0), self.coarser(enhanced4)
        p4, p3, p5 = tunnels[0](p4, enhanced4), tunnels[1](p3, enhanced3), tunnels[2](p5, enhanced5)
        top4 = self.top_down4(torch.cat((interpolate(p5, scale_factor=2.0), p4), dim=1))
        top3 = self.top_down3(torch.cat((interpolate(top4, scale_factor=2.0), p3), dim=1))
        down4, down3 = tunnels[3](top4, enhanced4), tunnels[4](top3, self.finer(enhanced3))
        up4 = self.bottom_up4(torch.cat((self.downsample4(down3), down4), dim=1))
        up5 = self.bottom_up5(torch.cat((self.downsample5(up4), p5), dim=1))
        return down3, tunnels[5](up4, enhanced4), tunnels[6](up5, enhanced5)


class YOLOv13(PyramidDetector):
    """A `PyramidDetector` with the layer table of YOLOv13."""

    project = "yolov13"

    @property
    def blocks(self) -> list[nn.Module | None]:
        """The layers of the published table; None stands for an upsampling or a concatenation."""
        neck = self.neck
        assert isinstance(neck, Neck)
        tunnels = neck.tunnels
        hypergraph = [neck.enhance, None, neck.coarser, *tunnels[:3]]
        top_down = [None, None, neck.top_down4, tunnels[3], None, None, neck.top_down3, neck.finer, tunnels[4]]
        bottom_up4 = [neck.downsample4, None, neck.bottom_up4, tunnels[5]]
        bottom_up5 = [neck.downsample5, None, neck.bottom_up5, tunnels[6]]
        return [*self.backbone.children(), *hypergraph, *top_down, *bottom_up4, *bottom_up5, self.head]


def build(
    scale: str, num_classes: int, channels: int = 3, class_width: int | None = None, paths: str = "many"
) -> YOLOv13:
    """A YOLOv13 of the size n, s, l or x with fresh weights, whose head has these `paths`.

    `class_width` fits it to imported files.
    """
    size, is_large = SCALES[scale], scale in LARGE
    shallow = partial(SeparableC3k2, repeats=size.repeats(2), c3k=is_large, expansion=0.25)
    expansion = 1.5 if is_large else 2.0
    deep = partial(A2C2f, repeats=size.repeats(4), residual=is_large, expansion=expansion)
    deep = partial(deep, attention=SeparateAreaAttention)
    conv = DOWNSAMPLES[0]
    separable = partial(SeparableConv, kernel=3, stride=2)
    backbone = PyramidBackbone(
        size,
        channels,
        yolo11.STAGE_WIDTHS,
        (shallow, shallow, partial(deep, areas=4), partial(deep, areas=1)),
        (conv, partial(conv, groups=2), partial(conv, groups=4), separable, separable),
    )
    neck = Neck(size, HYPEREDGES[scale])
    return YOLOv13(size, backbone, neck, num_classes, True, class_width, paths, box_bias=1.0)
