"""How well the maps of a network match the boxes of a split: in how many places the loss may learn each of them.

A place is an anchor point that lies in the box, or with anchors (YOLOv5) an anchor in a cell. Boxes lie where
validation places them: scaled into `imgsz` and letterboxed, without augmentation.

Shapes: n boxes, but for those to be ignored; h w cells of a level.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yoloyard.common.boxes import xyxy_to_cxcywh
from yoloyard.common.image_size import ImageSize, shape_of, size_text
from yoloyard.data.index.index import Index
from yoloyard.data.index.tiled import input_boxes
from yoloyard.losses.anchor_based import match
from yoloyard.losses.assign import points_between
from yoloyard.losses.assign_in_reach import candidates
from yoloyard.losses.task_aligned import MAX_DISTANCE
from yoloyard.models import registry
from yoloyard.models.heads import Head
from yoloyard.models.pyramid import P2
from yoloyard.training.setup.anchors import SIZES_PIXELS

COLUMNS = ("boxes", "none", "few", "some", "many")  # shares of boxes with 0, 1 to 3, 4 to 9 and more places
LIMITS = (1, 4, 10)
SHOWN = 5  # boxes without a place, in the log
BOXES_AT_ONCE = 10_000
POINTS_BESIDE = "hold no point of the maps at {size} pixels and can only be learned from points beside them"
POINT_THAT_SUITS = "have no point in reach at {size} pixels and are learned from the one that suits best, if any does"
NO_ANCHOR = "fit no anchor at {size} pixels (--anchor-t) and are not learned"


@dataclass(frozen=True, eq=False)
class MatchingReport:
    """The boxes of `index` that are trained on, and how many places the loss has for each."""

    model: str
    imgsz: ImageSize
    index: Index
    rows: np.ndarray  # int64 (n,) of the index's boxes
    sizes: np.ndarray  # float32 (n, 2) width and height, pixels of the network's input
    places: np.ndarray  # int64 (n,)
    without: str  # what becomes of boxes without a place

    def table(self) -> dict[str, dict[str, float]]:
        """The COLUMNS by group: all boxes, COCO's sizes of them, their classes. Groups without boxes are left out."""
        side, labels = np.sqrt(self.sizes.prod(axis=1)), self.index.labels[self.rows]
        groups = {name: (side >= low) & (side < high) for name, low, high in SIZES_PIXELS}
        groups |= {f"class {name}": labels == number for number, name in enumerate(self.index.names)}
        table = {}
        for name, chosen in groups.items():
            if count := int(chosen.sum()):
                kinds = np.bincount(np.digitize(self.places[chosen], LIMITS), minlength=len(LIMITS) + 1)
                table[name] = dict(zip(COLUMNS, (count, *(kinds / count).round(4).tolist()), strict=True))
        return table

    @property
    def num_without(self) -> int:
        """How many boxes have no place."""
        return int((self.places == 0).sum())

    def boxes_without(self, most: int | None = None) -> list[dict[str, Any]]:
        """The `most` smallest boxes without a place: image, class, width and height in pixels of the input."""
        none = np.flatnonzero(self.places == 0)
        none = none[np.argsort(self.sizes[none].prod(axis=1), kind="stable")][:most]
        images = np.searchsorted(self.index.offsets, self.rows[none], side="right") - 1
        return [
            {
                "image": self.index.paths[int(image)],
                "class": self.index.names[self.index.labels[self.rows[box]]],
                "width": round(float(self.sizes[box, 0]), 1),
                "height": round(float(self.sizes[box, 1]), 1),
            }
            for box, image in zip(none.tolist(), images.tolist(), strict=True)
        ]

    def lines(self) -> list[str]:
        """What a user can act on, in at most two lines; none if each box has a place."""
        if not self.num_without:
            return []
        options = ["a larger --imgsz"] + ["--tile"] * (self.index.tiling is None)
        options += [f"{self.model}{P2}"] * (f"{self.model}{P2}" in registry.BUILDERS)
        count, share = f"{self.num_without:,} of {len(self.rows):,} boxes", self.num_without / len(self.rows)
        smallest = [
            f"{box['width']:g}x{box['height']:g} ({box['class']}) in {box['image'].name}"
            for box in self.boxes_without(SHOWN)
        ]
        return [
            f"{count} ({share:.2%}) {self.without.format(size=size_text(self.imgsz))}: try {' or '.join(options)}",
            f"  the smallest, in pixels of the network's input: {'; '.join(smallest)}",
        ]

    def as_dict(self) -> dict[str, Any]:
        """The key `matching` of `yoloyard data check --json` (docs/json.md)."""
        rows = [{"of": name, **columns} for name, columns in self.table().items()]
        size = list(self.imgsz) if isinstance(self.imgsz, tuple) else self.imgsz
        return {"model": self.model, "imgsz": size, "groups": rows, "without": self.boxes_without()}


def matching_report(head: Head, model: str, index: Index, imgsz: ImageSize, anchor_t: float) -> MatchingReport | None:
    """The report for a head on the CPU; None for the loss of a custom model, or without boxes.

    `imgsz` is a multiple of the largest stride. An anchor learns boxes up to `anchor_t` times longer or shorter.
    """
    rows = np.flatnonzero(~index.ignore)
    without = WITHOUT.get(head.criterion) if isinstance(head.criterion, str) else None
    if without is None or not len(rows):
        return None
    boxes = torch.from_numpy(input_boxes(index, imgsz)[rows])
    places = torch.cat([places_of(part, head, shape_of(imgsz), anchor_t) for part in boxes.split(BOXES_AT_ONCE)])
    return MatchingReport(model, imgsz, index, rows, (boxes[:, 2:] - boxes[:, :2]).numpy(), places.numpy(), without)


def places_of(boxes_xyxy: Tensor, head: Any, shape: tuple[int, int], anchor_t: float) -> Tensor:
    """In how many places the loss of `head` may learn each of the boxes (n, 4); int64 (n,). `shape`: H, W of the input.

    Points that it takes beside a box, where none or few lie in it, don't count.
    """
    if head.criterion == "anchor_based":
        return _anchors_that_fit(boxes_xyxy, head, shape, anchor_t)
    low, high = boxes_xyxy.split(2, dim=1)
    inside = _in_reach if head.criterion == "auxiliary" else _between
    places = torch.zeros(len(boxes_xyxy), dtype=torch.int64)
    for stride in head.strides:
        axes = zip(low.unbind(1), high.unbind(1), shape[::-1], strict=True)
        # a point is in a box if it is so in x and in y
        places += torch.stack([inside(*axis, stride).sum(dim=1) for axis in axes]).prod(dim=0)
    return places


def _between(low: Tensor, high: Tensor, side: int, stride: int) -> Tensor:
    """Which of the points along a `side`, pixels, are between `low` and `high` (n,); bool (n, side / stride)."""
    points = (torch.arange(side // stride) + 0.5) * stride
    return points_between(points.view(1, 1, -1), low.view(1, -1, 1), high.view(1, -1, 1))


def _in_reach(low: Tensor, high: Tensor, side: int, stride: int) -> Tensor:
    """Which of the points along a `side` YOLOv9 may choose, see `_between`."""
    points = (torch.arange(side // stride) + 0.5) * stride
    reach = MAX_DISTANCE * torch.full_like(points, stride)
    return candidates(low.view(1, 1, -1, 1), high.view(1, 1, -1, 1), points.unsqueeze(1), reach)[0]


def _anchors_that_fit(boxes_xyxy: Tensor, head: Any, shape: tuple[int, int], anchor_t: float) -> Tensor:
    """In how many cells an anchor learns each of the boxes (n, 4), over all anchors; int64 (n,)."""
    places = torch.zeros(len(boxes_xyxy), dtype=torch.int64)
    for stride, anchors in zip(head.strides, head.anchors.cpu(), strict=True):
        boxes, size = xyxy_to_cxcywh(boxes_xyxy / stride).unsqueeze(0), (shape[0] // stride, shape[1] // stride)
        matches = match(boxes, torch.zeros(1, len(boxes_xyxy)).long(), anchors / stride, size, anchor_t)
        places += matches.applies.view(-1, len(boxes_xyxy)).sum(dim=0)
    return places


WITHOUT = {
    "anchor_based": NO_ANCHOR,
    "auxiliary": POINT_THAT_SUITS,
    "end_to_end": POINTS_BESIDE,
    "task_aligned": POINTS_BESIDE,
}
