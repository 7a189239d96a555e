"""The loss of the anchor-free families: task-aligned assignment, CIoU, a loss of the sides, cross-entropy.

Shapes: B batch, M boxes per image, P anchor points over all levels, C classes.

Sources: Feng et al., "TOOD" (ICCV 2021) for the assignment and the class loss with target scores; Li et al.,
"Generalized Focal Loss" (NeurIPS 2020), section 3.2, for the distribution; Zheng et al. (AAAI 2020) for CIoU; YOLO26
(2026) for the sides without a distribution.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from yoloyard.common.boxes import anchor_points, complete_iou
from yoloyard.config.settings import TrainConfig
from yoloyard.losses.assign import BYTES_OF_A_PAIR, PAIRS_AT_ONCE, TOP_K, Assignment, assign, minimum_side_of

Sums = tuple[Tensor, Tensor, Tensor, Tensor]  # box, cls, dfl or l1, and their norm, each ()

BINS = 16  # of each side's distance, in grid units 0..15
MAX_DISTANCE = BINS - 1 - 0.01
TOP_K_OF_ONE = 7  # points that a box chooses its only one from
SHARE_OF_MEMORY = 1 / 8  # of what is free before the first step; the forward's maps want the rest


class Grid(NamedTuple):
    """What follows from the shapes of the maps."""

    points: Tensor  # (P, 2) x and y in cells
    strides: Tensor  # (P, 1) pixels
    pixels: Tensor  # the points (P, 2) in pixels
    cells: Tensor  # (P, 4) xyxy in cells: the cell around each point
    scale: Tensor  # (P, 4), see `side_scale`
    bins: Tensor  # (bins,) 0 .. bins - 1, float32


@dataclass(eq=False)
class TaskAlignedLoss:
    """`criterion(maps, boxes, labels)` for detectors whose maps are (B, 4 * bins + C, h, w), box logits first.

    `class_weights` (C,) multiply what each class's column adds to the class loss. `pairs_at_once` pairs of a box and a
    point are looked at together; for this, `top_k` and `best_only` see `assign`. `bins` is 16 or 1: a side's distance
    is a distribution, or a number.
    """

    strides: tuple[int, ...]
    num_classes: int
    class_weights: Tensor | None = None
    pairs_at_once: int = PAIRS_AT_ONCE
    bins: int = BINS
    top_k: int = TOP_K
    best_only: bool = False
    _grids: dict[tuple[tuple[int, int], ...], Grid] = field(default_factory=dict)

    def __call__(self, maps: list[Tensor], boxes_xyxy: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums (1,) and norms (1,) of `box`, `cls` and the sides, `dfl` or `l1`, on this process.

        `boxes_xyxy` (B, M, 4) pixels of the network's input, `labels` (B, M) with -1 in padded slots. The norm of all
        three is the sum of the target scores. Computed in float32 whatever the maps' type.
        """
        box, cls, sides, norm = (value.reshape(1) for value in self.sums(maps, boxes_xyxy, labels))
        return {"box": (box, norm), "cls": (cls, norm), self.name_of_sides: (sides, norm)}

    @property
    def name_of_sides(self) -> str:
        """The name of the loss of the sides."""
        return "dfl" if self.bins > 1 else "l1"

    def gains(self, config: TrainConfig) -> dict[str, float]:
        """The gains of the parts by their names."""
        return {"box": config.loss.box, "cls": config.loss.cls, self.name_of_sides: config.loss.dfl}

    def sums(self, maps: list[Tensor], boxes_xyxy: Tensor, labels: Tensor) -> Sums:
        """The sums over all points and their norm. No shape depends on the data, and nothing waits for the device."""
        grid = self._grid_of(maps)
        # (B, h * w, K) is how a channels_last map lies in memory, so nothing is transposed, back and forth
        levels = [level.permute(0, 2, 3, 1).flatten(1, 2).split((4 * self.bins, self.num_classes), 2) for level in maps]
        box_logits, class_logits = (torch.cat(parts, dim=1).float() for parts in zip(*levels, strict=True))
        log_distribution, predicted_grid = boxes_of(box_logits, grid.points, grid.bins)
        predicted, scores = predicted_grid.detach() * grid.strides, class_logits.detach().sigmoid()
        assignment = self.assign(predicted, scores, grid, boxes_xyxy, labels)
        weights = assignment.target_scores
        # A background point has its own cell as its target, which keeps every term finite.
        learns = assignment.foreground.unsqueeze(-1)
        target_grid = torch.where(learns, assignment.boxes_xyxy / grid.strides, grid.cells)

        box = _weighted_sum(1 - complete_iou(predicted_grid, target_grid), weights)
        of_sides = side_loss(log_distribution, predicted_grid, target_grid, grid.points, grid.scale)
        sides = _weighted_sum(of_sides, weights)
        return box, _class_loss(class_logits, assignment, self.class_weights), sides, weights.sum()

    def side_scale(self, maps: list[Tensor], strides: Tensor) -> Tensor:
        """What makes cells of points with `strides` (..., 1) shares of the image's width and height, (..., 4)."""
        height, width = (side * self.strides[0] for side in maps[0].shape[2:])
        return torch.cat((strides / width, strides / height), dim=-1).repeat(1, 2)

    def assign(self, predicted: Tensor, scores: Tensor, grid: Grid, boxes_xyxy: Tensor, labels: Tensor) -> Assignment:
        """What the points learn of the boxes (B, M, 4), see `assign`; `predicted` (B, P, 4) xyxy in pixels."""
        selection = self.pairs_at_once, self.top_k, self.best_only, minimum_side_of(self.strides)
        return assign(predicted, scores, grid.pixels, boxes_xyxy, labels, *selection)

    def _grid_of(self, maps: list[Tensor]) -> Grid:
        """The `Grid` of these maps; made once for the same sizes."""
        sizes = tuple((level.shape[2], level.shape[3]) for level in maps)
        if sizes not in self._grids:
            points, strides = anchor_points(list(sizes), self.strides, maps[0].device)
            cells = torch.cat((points - 0.5, points + 0.5), dim=1)
            bins = torch.arange(self.bins, dtype=torch.float32, device=points.device)
            self._grids[sizes] = Grid(points, strides, points * strides, cells, self.side_scale(maps, strides), bins)
        return self._grids[sizes]


def build(
    head: Any, config: TrainConfig, class_weights: Tensor | None, free_bytes: int | None
) -> tuple[TaskAlignedLoss, dict[str, float]]:
    """The loss of an anchor-free head, see `losses.Builder`; a part of the `free_bytes` is for pairs at once.

    A head that needs no suppression learns one point for each box.
    """
    criterion = loss_of_branches(head, class_weights, free_bytes, best_only=not head.needs_suppression)
    return criterion, criterion.gains(config)


def loss_of_branches(
    head: Any,
    class_weights: Tensor | None,
    free_bytes: int | None,
    best_only: bool = False,
    kind: type[TaskAlignedLoss] = TaskAlignedLoss,
) -> TaskAlignedLoss:
    """The loss of a pair of branches that finds each object many times, or once (`best_only`)."""
    pairs = PAIRS_AT_ONCE if free_bytes is None else int(free_bytes * SHARE_OF_MEMORY) // BYTES_OF_A_PAIR
    top_k = TOP_K_OF_ONE if best_only else TOP_K
    return kind(head.strides, head.num_classes, class_weights, pairs, head.bins, top_k, best_only)


def task_aligned_parts(criterion: object) -> list[TaskAlignedLoss]:
    """The `TaskAlignedLoss` that `criterion` is, or those that it is made of: its `branches`."""
    return [each for each in getattr(criterion, "branches", (criterion,)) if type(each) is TaskAlignedLoss]


def boxes_of(box_logits: Tensor, points: Tensor, bins: Tensor) -> tuple[Tensor | None, Tensor]:
    """Logarithms of the distributions, (..., 4, bins), and boxes xyxy (..., 4) in cells; logits (..., 4 * bins).

    `bins` is 0 .. 15, float32 (16,), or a single one: then the logits are the distances, and there is no distribution.
    """
    log_distribution, distances = None, box_logits
    if len(bins) > 1:
        log_distribution = functional.log_softmax(box_logits.unflatten(-1, (4, len(bins))), dim=-1)
        distances = log_distribution.exp() @ bins
    left_top, right_bottom = distances.split(2, dim=-1)
    return log_distribution, torch.cat((points - left_top, points + right_bottom), dim=-1)


def _class_loss(class_logits: Tensor, assignment: Assignment, class_weights: Tensor | None) -> Tensor:
    """Binary cross-entropy summed over all points and classes, these weighted by `class_weights` (C,) if given.

    Each point has at most one target above zero, and bce(x, y) = softplus(x) - x * y: no dense targets are needed.
    """
    own_logit = class_logits.gather(2, assignment.labels.unsqueeze(-1)).squeeze(-1)
    none_true, scores = functional.softplus(class_logits), assignment.target_scores
    if class_weights is None:
        return none_true.sum() - _weighted_sum(own_logit, scores)
    scores = scores * class_weights[assignment.labels]
    return none_true.sum(dim=(0, 1)) @ class_weights - _weighted_sum(own_logit, scores)


def _weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    return torch.dot(values.flatten(), weights.flatten())


def side_loss(
    log_distribution: Tensor | None, predicted_grid: Tensor, target_grid: Tensor, points: Tensor, scale: Tensor
) -> Tensor:
    """The loss of the sides of boxes in cells, mean of the four, (..., P).

    Without a distribution it is the distance between both boxes' sides as a share of the image's, see `side_scale`.
    """
    if log_distribution is not None:
        return distribution_loss(log_distribution, target_grid, points)
    return (predicted_grid - target_grid).abs().mul(scale).mean(dim=-1)


def distribution_loss(log_distribution: Tensor, target_grid: Tensor, points: Tensor) -> Tensor:
    """Cross-entropy with the two bins around each side's true distance, mean of the sides, (..., P)."""
    target_left_top, target_right_bottom = target_grid.split(2, dim=-1)
    distance = torch.cat((points - target_left_top, target_right_bottom - points), dim=-1)
    distance = distance.clamp(0, MAX_DISTANCE)
    low = distance.long()
    weight_high = distance - low
    index = torch.stack((low, low + 1), dim=-1)
    log_low, log_high = log_distribution.gather(-1, index).unbind(-1)
    return -log_low.lerp(log_high, weight_high).mean(dim=-1)
