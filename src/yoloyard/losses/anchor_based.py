"""The loss of YOLOv5: anchors matched by their sides' ratio, CIoU, objectness by the overlap, cross-entropy of classes.

Shapes: B batch, M boxes per image, A anchors a cell, C classes, L levels, h w cells of a level, R = 5 * M rows of one
anchor: each box may be learned in five cells, its own and those to the left, above, to the right and below.

Source: YOLOv5 7.0 (2022); Zheng et al. (AAAI 2020) for CIoU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from yoloyard.common.boxes import complete_iou, cxcywh_to_xyxy, xyxy_to_cxcywh
from yoloyard.common.image_size import shape_of
from yoloyard.config.settings import TrainConfig

THREE_LEVELS = (4.0, 1.0, 0.4)  # weights of the levels' objectness
MORE_LEVELS = (4.0, 1.0, 0.25, 0.06, 0.02)


class Matches(NamedTuple):
    """What each anchor of a level learns: rows (B, A, R), the step slowest, then the box."""

    applies: Tensor  # bool (B, A, R)
    cells: Tensor  # int64 (B, A, R), row * w + column
    boxes_cxcywh: Tensor  # float32 (B, A, R, 4), in cells, the centre from the cell's corner; ones where not
    labels: Tensor  # int64 (B, A, R), 0 where not


@dataclass(eq=False)
class AnchorBasedLoss:
    """`criterion(maps, boxes, labels)` for detectors whose maps are (B, A * (5 + C), h, w).

    `anchors` (L, A, 2) are widths and heights in pixels; a box is learned by the anchors whose sides are less than
    `anchor_t` times longer or shorter. `cls_pw` and `obj_pw` weigh the positive targets of classes and objectness.
    `class_weights` (C,) multiply what each class's column adds to the class loss.
    """

    anchors: Tensor
    strides: Sequence[int]
    num_classes: int
    anchor_t: float = 4.0
    label_smoothing: float = 0.0
    cls_pw: float = 1.0
    obj_pw: float = 1.0
    class_weights: Tensor | None = None

    def __call__(self, maps: list[Tensor], boxes_xyxy: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums (L,) and norms (L,) of `box`, `obj` and `cls` on this process.

        `boxes_xyxy` (B, M, 4) pixels of the network's input, `labels` (B, M) with -1 in padded slots. The norms count
        the rows, the cells of all anchors, and the rows times C. Computed in float32 whatever the maps' type.
        """
        weights = THREE_LEVELS if len(maps) == 3 else MORE_LEVELS[: len(maps)]
        levels = [
            self._level(level.float(), boxes_xyxy / stride, labels, anchors / stride, weight)
            for level, stride, anchors, weight in zip(maps, self.strides, self.anchors, weights, strict=True)
        ]
        box, obj, cls, rows, cells = (torch.stack(column) for column in zip(*levels, strict=True))
        return {"box": (box, rows), "obj": (obj, cells), "cls": (cls, rows * self.num_classes)}

    def norms(self, size_hw: Sequence[int], boxes_xyxy: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The norms of `__call__`, which follow from the labels of images of `size_hw` pixels; no map is needed."""
        rows, cells = [], []
        for stride, anchors in zip(self.strides, self.anchors, strict=True):
            height, width = (side // stride for side in size_hw)
            boxes = xyxy_to_cxcywh(boxes_xyxy / stride)
            rows.append(match(boxes, labels, anchors / stride, (height, width), self.anchor_t).applies.sum().float())
            cells.append(torch.full_like(rows[-1], labels.shape[0] * len(anchors) * height * width))
        matched = torch.stack(rows)
        return {"box": matched, "obj": torch.stack(cells), "cls": matched * self.num_classes}

    def _level(
        self, level: Tensor, boxes: Tensor, labels: Tensor, anchors: Tensor, weight: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The sums of box, obj and cls, and the numbers of rows and cells, each ().

        Boxes and anchors are in cells of this level, whose objectness has `weight`.
        """
        height, width = level.shape[2:]
        outputs = level.unflatten(1, (len(anchors), 5 + self.num_classes)).flatten(3)  # (B, A, 5 + C, h * w)
        box_logits, objectness, class_logits = outputs.split((4, 1, self.num_classes), dim=2)
        objectness = objectness.squeeze(2)  # (B, A, h * w)
        matches = match(xyxy_to_cxcywh(boxes), labels, anchors, (height, width), self.anchor_t)

        own_logits = box_logits.gather(3, matches.cells.unsqueeze(2).expand(-1, -1, 4, -1)).transpose(2, 3).sigmoid()
        centres = 2 * own_logits[..., :2] - 0.5
        sizes = (2 * own_logits[..., 2:]).square() * anchors.unsqueeze(1)
        predicted_xyxy = cxcywh_to_xyxy(torch.cat((centres, sizes), dim=3))
        ciou = complete_iou(predicted_xyxy, cxcywh_to_xyxy(matches.boxes_cxcywh))  # (B, A, R)
        box = torch.where(matches.applies, 1 - ciou, 0).sum()

        target = _last_row_wins(ciou.detach().clamp(min=0), matches, height * width)
        obj = _cross_entropy(objectness, target, self.obj_pw).sum() * weight
        cells = torch.full_like(obj, objectness.numel(), requires_grad=False)
        cls = self._class_loss(class_logits, matches) if self.num_classes > 1 else torch.zeros_like(obj)
        return box, obj, cls, matches.applies.sum().float(), cells

    def _class_loss(self, class_logits: Tensor, matches: Matches) -> Tensor:
        """Cross-entropy of all classes, summed over the rows.

        What all classes contribute as if none were true is summed a cell and picked up by the rows, so that no row
        needs all logits: entropy(x, y) is linear in y.
        """
        low, high = self.label_smoothing / 2, 1 - self.label_smoothing / 2
        none_true = _cross_entropy(class_logits, low, self.cls_pw)  # (B, A, C, h * w)
        own = class_logits.flatten(2).gather(2, matches.labels * class_logits.shape[3] + matches.cells)
        extra = _cross_entropy(own, high, self.cls_pw) - _cross_entropy(own, low, self.cls_pw)
        if self.class_weights is not None:
            none_true = none_true * self.class_weights.unsqueeze(1)
            extra = extra * self.class_weights[matches.labels]
        return torch.where(matches.applies, none_true.sum(dim=2).gather(2, matches.cells) + extra, 0).sum()


def build(
    head: Any, config: TrainConfig, class_weights: Tensor | None, free_bytes: int | None
) -> tuple[AnchorBasedLoss, dict[str, float]]:
    """As `losses.Builder` says; the gains are published for 80 classes, 640 pixels, 3 levels and follow the run's."""
    loss, levels = config.loss, 3 / len(head.strides)
    options = (loss.anchor_t, loss.label_smoothing, loss.cls_pw, loss.obj_pw)
    criterion = AnchorBasedLoss(head.anchors, head.strides, head.num_classes, *options, class_weights)
    return criterion, {
        "box": loss.box * levels,
        "cls": loss.cls * levels * head.num_classes / 80,
        # by the area: the loss is a mean over cells, of which a box has a few in an image of any size
        "obj": loss.obj * levels * math.prod(side / 640 for side in shape_of(config.imgsz)),
    }


def match(boxes_cxcywh: Tensor, labels: Tensor, anchors: Tensor, size: tuple[int, int], anchor_t: float) -> Matches:
    """Which anchors (A, 2) learn which boxes (B, M, 4) in which cells of a level of `size` (h, w); all in cells.

    A cell beside the box's own learns it too if the centre lies in the half towards it.
    """
    height, width = size
    ratio = boxes_cxcywh[:, None, :, 2:] / anchors[:, None]  # (B, A, M, 2)
    fits = torch.maximum(ratio, 1 / ratio).amax(dim=3) < anchor_t  # a box without width or height has infinite ratios
    fits &= labels[:, None] >= 0

    x, y = boxes_cxcywh[..., 0], boxes_cxcywh[..., 1]
    # (B, 5, M): its own cell, then left, up, right, down, where the centre is near that side and there is a neighbour
    from_edges = torch.stack((x, y, width - x, height - y), dim=1)
    in_reach = torch.cat((labels.unsqueeze(1) >= 0, (from_edges % 1 < 0.5) & (from_edges > 1)), dim=1)
    columns = torch.stack((x, x - 0.5, x, x + 0.5, x), dim=1).long().clamp(0, width - 1)
    rows = torch.stack((y, y, y - 0.5, y, y + 0.5), dim=1).long().clamp(0, height - 1)
    centres = torch.stack((x.unsqueeze(1) - columns, y.unsqueeze(1) - rows), dim=3)
    targets = torch.cat((centres, boxes_cxcywh[:, None, :, 2:].expand(-1, 5, -1, -1)), dim=3)  # (B, 5, M, 4)

    applies = (fits.unsqueeze(2) & in_reach.unsqueeze(1)).flatten(2)  # (B, A, R)
    return Matches(
        applies,
        (rows * width + columns).flatten(1).unsqueeze(1).expand_as(applies),
        # any box will do, to keep every term finite, where nothing is learned
        torch.where(applies.unsqueeze(3), targets.flatten(1, 2).unsqueeze(1), 1.0),
        labels.clamp(min=0).repeat(1, 5).unsqueeze(1).expand_as(applies),
    )


def _last_row_wins(values: Tensor, matches: Matches, num_cells: int) -> Tensor:
    """`values` (B, A, R) of the rows put into their cells, (B, A, h * w), zero elsewhere.

    Where several rows have the same cell, the last one counts, as in the published implementation on a CPU. Which one
    is last is computed, so that the result is the same on every device.
    """
    numbers = torch.arange(1, values.shape[2] + 1, device=values.device).expand_as(values)
    numbers = torch.where(matches.applies, numbers, 0)
    empty = numbers.new_zeros(*values.shape[:2], num_cells)
    last = empty.scatter_reduce(2, matches.cells, numbers, "amax")
    wins = matches.applies & (last.gather(2, matches.cells) == numbers)
    return values.new_zeros(empty.shape).scatter_add(2, matches.cells, torch.where(wins, values, 0))


def _cross_entropy(logits: Tensor, targets: Tensor | float, positive_weight: float) -> Tensor:
    """Binary cross-entropy, element by element; what a positive target contributes is weighted."""
    softplus = functional.softplus(logits)
    return softplus * (1 + (positive_weight - 1) * targets) - positive_weight * targets * logits
