"""What a detector is, and how the five sizes of a family differ.

Shapes: B batch, H W pixels of the input, h w cells of a level, C classes, P anchor points.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from yoloyard.common.image_size import ImageSize, rounded_up
from yoloyard.models.blocks import Conv, is_plain
from yoloyard.models.heads import Found, Head
from yoloyard.models.rep_blocks import RepConv

NORMALISATIONS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class Detector(nn.Module):
    """A network with a head. It knows nothing of targets, losses or devices.

    forward: images, float 0 .. 1 (B, channels, H, W), H and W multiples of the largest stride, to the head's raw maps,
    one (B, `head.outputs`, h, w) a stride, the same in training and evaluation.
    A subclass sets `self.head` and defines `forward`.
    """

    head: Head
    image_channels: int = 3  # of its images, set by who builds it
    project: ClassVar[str]  # that published the family, as its weight files name the project

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of a cell, one a level, ascending."""
        return self.head.strides

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.head.num_classes

    @property
    def blocks(self) -> list[nn.Module | None]:
        """The blocks that `--freeze N` counts: a family's in their published order, None for those without weights."""
        return list(self.children())

    def input_size(self, imgsz: ImageSize) -> ImageSize:
        """`imgsz` with both sides rounded up to a multiple of the largest stride."""
        return rounded_up(imgsz, max(self.strides))

    def decode(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Raw maps to boxes (B, P, 4), xyxy in input pixels, not clipped, and scores (B, P, C) in 0 .. 1."""
        return self.head.decode(maps)

    def decode_above(self, maps: Sequence[Tensor], conf: float, multi_label: bool) -> Found:
        """What `decode` gives where a score is above `conf`: image, box, score and class, each with a row for one."""
        return self.head.decode_above(maps, conf, multi_label)

    def keep_path(self, suppression: bool) -> None:
        """Drop what only training needs, and of two kinds of branches those for, or without, suppression.

        Raises UsageError if there is no such path.
        """
        self.head.keep_path(suppression)

    @torch.no_grad()
    def fused(self, suppression: bool | None = None) -> Self:
        """A copy in evaluation mode whose `Conv` blocks have no BatchNorm, and `RepConv` are one; else the same.

        Of two kinds of branches it has those whose boxes want `suppression`, or those whose boxes don't; None: the
        former where they are there. Raises UsageError if the network has no such branches.

        In evaluation a normalisation is a factor and an offset for each channel, which a convolution can do itself. The
        statistics are those of now, so a network that is trained further must be fused again. Other classes, as a
        custom model may have, stay as they are, and so do layers with hooks or without weights or statistics.
        """
        fused = copy.deepcopy(self).eval().requires_grad_(False)
        fused.keep_path(self.head.needs_suppression if suppression is None else suppression)
        for block in fused.modules():
            if type(block) is not Conv or not (is_plain(block.conv, nn.Conv2d) and is_plain(block.bn, *NORMALISATIONS)):
                continue
            if block.bn.affine and block.bn.running_mean is not None:
                block.conv, block.bn = _folded(block.conv, block.bn), nn.Identity()  # type: ignore[assignment]
        for parent in list(fused.modules()):
            for name, child in parent.named_children():
                if type(child) is RepConv:
                    setattr(parent, name, child.merged())
        return fused


def _folded(conv: nn.Conv2d, bn: nn.BatchNorm2d | nn.SyncBatchNorm) -> nn.Conv2d:
    assert isinstance(bn.running_mean, Tensor)
    assert isinstance(bn.running_var, Tensor)
    factor = bn.weight * torch.rsqrt(bn.running_var + bn.eps)  # (channels,)
    offset = bn.bias - bn.running_mean * factor
    folded = copy.deepcopy(conv)  # which may stand in other blocks, too
    folded.weight = nn.Parameter(conv.weight * factor.view(-1, 1, 1, 1), requires_grad=False)
    folded.bias = nn.Parameter(offset if conv.bias is None else offset + conv.bias * factor, requires_grad=False)
    return folded


@dataclass(frozen=True)
class Scale:
    """How one size of a family differs from the table that the family's file writes down."""

    depth: float
    width: float
    max_channels: int

    def channels(self, channels: int) -> int:
        """The table's channel number at this size, a multiple of 8."""
        return math.ceil(min(channels, self.max_channels) * self.width / 8) * 8

    def repeats(self, repeats: int) -> int:
        """The table's repeat count at this size, at least 1."""
        return max(round(repeats * self.depth), 1)
