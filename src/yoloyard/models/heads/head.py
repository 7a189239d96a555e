"""What every head offers: from feature maps to raw maps, and, apart from it, from raw maps to boxes and scores.

Shapes: B batch, C classes, L levels, h w cells of a level, P anchor points (cells of all levels; with anchors, one for
each anchor of a cell), n points and classes of a batch whose score is above a threshold.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from yoloyard.common.errors import UsageError

# Image int64 (n,), box float32 (n, 4) xyxy in input pixels, score (n,), class int64 (n,); in the order of points.
Found = tuple[Tensor, Tensor, Tensor, Tensor]


class Head(nn.Module):
    """The last part of a detector: one feature map a level to one raw map a level, (B, `outputs`, h, w).

    `in_channels` and `strides` (pixels of a cell, ascending) have an entry for each level. A head brings with it all
    that training, weight files and importing must know of it, so that nothing else asks for its kind.
    """

    # Its loss: a name in `losses.LOSSES`, or in a user file a method, a builder as described there.
    criterion: str | Callable[..., Any]
    # Buffers that say how its maps are read. A weight file keeps them; starting weights don't change a custom model's.
    # `anchors` (L, A, 2), width and height in pixels, are fitted to the data (`autoanchor`).
    constants: ClassVar[tuple[str, ...]] = ()
    # Is the class output trained where there is a single class? If not, its rows are useless to other data.
    learns_single_class: ClassVar[bool] = True
    # Are several boxes found for one object, so that all but the best must be dropped?
    needs_suppression: bool = True
    # Own name of a part: the name in files of the project that published it, where they differ.
    published_names: Mapping[str, str] = {}
    # Part: the part that it begins as where starting weights have none of its own.
    begins_as: ClassVar[Mapping[str, str]] = {}

    def __init__(self, in_channels: Sequence[int], num_classes: int, strides: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.in_channels = tuple(in_channels)
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.outputs = outputs

    @property
    def paths(self) -> tuple[str, ...]:
        """The values of `--suppression` that it has branches for, the one that is used by default first."""
        return ("on",) if self.needs_suppression else ("off",)

    def check_path(self, suppression: bool) -> None:
        """Raise UsageError if there are no branches for, or without, suppression."""
        if suppression and "on" not in self.paths:
            raise UsageError("these weights find each object once and have nothing to suppress: --suppression off")
        if not suppression and "off" not in self.paths:
            missing = "these weights have no branches that find each object once"
            raise UsageError(f"{missing}: --suppression on, or train with --end2end")

    def keep_path(self, suppression: bool) -> None:
        """Keep only what finds boxes for, or without, suppression; the maps are those of that path from then on.

        Raises UsageError if there is no such path.
        """
        self.check_path(suppression)

    @property
    def last_layers(self) -> list[str]:
        """Names of the layers whose output channels belong to the classes; none if no row can be told apart."""
        return []

    def class_rows(self, num_classes: int) -> tuple[list[int], list[list[int]]]:
        """Output channels of a last layer for `num_classes`: those that belong to no class, and those of each class."""
        return [], [[row] for row in range(num_classes)]

    def decode(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Raw maps to boxes (B, P, 4), xyxy in input pixels, not clipped, and scores (B, P, C) in 0 .. 1, float32."""
        raise NotImplementedError(f"{type(self).__name__} must define decode")

    def decode_above(self, maps: Sequence[Tensor], conf: float, multi_label: bool) -> Found:
        """What `decode` gives where a score is above `conf`, 0 .. 1.

        With `multi_label` a point comes once for each such class, else only for its best one.
        """
        boxes_xyxy, scores = self.decode(maps)
        images, points, labels, values = above(scores, conf, multi_label)
        return images, boxes_xyxy[images, points], values, labels


def above(values: Tensor, limit: float, multi_label: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, point and class where `values` (B, points, C) are above `limit`, and these values; each (n,)."""
    if multi_label and values.shape[2] > 1:
        images, points, labels = (values > limit).nonzero(as_tuple=True)
        return images, points, labels, values[images, points, labels]
    best, labels = values.max(dim=2)
    images, points = (best > limit).nonzero(as_tuple=True)
    return images, points, labels[images, points], best[images, points]


def centres(cells: Tensor, width: int) -> Tensor:
    """Centres (n, 2), x and y in cells, of `cells` (n,) counted row by row in a level of `width`."""
    return torch.stack((cells % width, cells // width), dim=1) + 0.5


def join(levels: Sequence[Found], conf: float) -> Found:
    """The findings of all levels together, without those whose score is not above `conf` after all."""
    images, boxes_xyxy, scores, labels = (torch.cat(column) for column in zip(*levels, strict=True))
    sure = (scores > conf).nonzero()[:, 0]  # once: each index by a mask would ask the device how many there are
    return images[sure], boxes_xyxy[sure], scores[sure], labels[sure]
