"""What a detector is, and how the five sizes of a family differ.

Shapes: B batch, H W pixels of the input, h w cells of a level, C classes, P anchor points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from yoloyard.models.fused import fuse
from yoloyard.models.heads import Found, Head


class Detector(nn.Module):
    """A network with a head. It knows nothing of targets, losses or devices.

    forward: images, float 0 .. 1 (B, channels, H, W), H and W multiples of the largest stride, to the head's raw maps,
    one (B, `head.outputs`, h, w) a stride, the same in training and evaluation.
    A subclass sets `self.head` and defines `forward`.
    """

    head: Head

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

    def input_size(self, imgsz: int) -> int:
        """`imgsz` pixels rounded up to a multiple of the largest stride."""
        return math.ceil(imgsz / max(self.strides)) * max(self.strides)

    def decode(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Raw maps to boxes (B, P, 4), xyxy in input pixels, not clipped, and scores (B, P, C) in 0 .. 1."""
        return self.head.decode(maps)

    def decode_above(self, maps: Sequence[Tensor], conf: float, multi_label: bool) -> Found:
        """What `decode` gives where a score is above `conf`: image, box, score and class, each with a row for one."""
        return self.head.decode_above(maps, conf, multi_label)

    def fused(self) -> Self:
        """A copy for evaluation alone, its normalisations folded into convolutions; see `fused.fuse`."""
        return fuse(self)


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
