"""The losses of heads with two sets of branches, each assigned by its own predictions and with a norm of its own.

Shapes: B batch, M boxes per image, P anchor points over all levels, C classes.

Sources: Wang et al., "YOLOv10" (2024), section 3.1, for branches that find each object once; YOLO26 (2026) for shares
that move; Wang et al., "YOLOv9" (2024), section 4.1, for auxiliary branches, whose share and assignment are those of
the MIT implementation of MultimediaTechLab.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from yoloyard.config.settings import TrainConfig
from yoloyard.losses.assign import Assignment
from yoloyard.losses.assign_in_reach import assign_in_reach
from yoloyard.losses.task_aligned import MAX_DISTANCE, Grid, TaskAlignedLoss, loss_of_branches

FIRST_SHARES, LAST_SHARES = (0.8, 0.2), (0.1, 0.9)  # of one-to-many and one-to-one in the first and in the last epoch
AUXILIARY_SHARES = 1.0, 0.25  # of the own and of the auxiliary branches


class BranchesLoss:
    """`criterion(maps, boxes, labels)` for maps (B, n * outputs, h, w), those of each of the n `branches` in turn.

    `first` and `last` are the shares of the branches in the loss of the first and of the last epoch.
    """

    def __init__(self, branches: Sequence[TaskAlignedLoss], first: Sequence[float], last: Sequence[float]) -> None:
        self.branches, self.first, self.last = tuple(branches), first, last
        self.set_epoch(0, 1)

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Take the shares that belong to `epoch`, from 0, of a training of `epochs`."""
        left = max(1 - epoch / max(epochs - 1, 1), 0.0)
        self.shares = tuple(left * (first - last) + last for first, last in zip(self.first, self.last, strict=True))

    def __call__(self, maps: list[Tensor], boxes_xyxy: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The parts of `TaskAlignedLoss`: sums (n,), times the shares, and norms (n,).

        `boxes_xyxy` (B, M, 4) pixels of the network's input, `labels` (B, M) with -1 in padded slots.
        """
        sets = zip(*(level.chunk(len(self.branches), dim=1) for level in maps), strict=True)
        parts = [loss(list(own), boxes_xyxy, labels) for loss, own in zip(self.branches, sets, strict=True)]
        return {
            name: (
                torch.cat([part[name][0] * share for part, share in zip(parts, self.shares, strict=True)]),
                torch.cat([part[name][1] for part in parts]),
            )
            for name in parts[0]
        }


class ReachLoss(TaskAlignedLoss):
    """A `TaskAlignedLoss` whose boxes are assigned by `assign_in_reach`."""

    def assign(self, predicted: Tensor, scores: Tensor, grid: Grid, boxes_xyxy: Tensor, labels: Tensor) -> Assignment:
        """As `TaskAlignedLoss.assign` says."""
        reach = MAX_DISTANCE * grid.strides.squeeze(1)
        return assign_in_reach(predicted, scores, grid.pixels, reach, boxes_xyxy, labels, self.pairs_at_once)


def build_end_to_end(
    head: Any, config: TrainConfig, class_weights: Tensor | None, free_bytes: int | None
) -> tuple[BranchesLoss, dict[str, float]]:
    """The loss of an `EndToEndHead` with both pairs of branches, see `losses.Builder`."""
    many, one = (loss_of_branches(head, class_weights, free_bytes, best_only) for best_only in (False, True))
    return BranchesLoss((many, one), FIRST_SHARES, LAST_SHARES), many.gains(config)


def build_auxiliary(
    head: Any, config: TrainConfig, class_weights: Tensor | None, free_bytes: int | None
) -> tuple[BranchesLoss | TaskAlignedLoss, dict[str, float]]:
    """The loss of an `AuxiliaryHead` with or without its auxiliary branches, see `losses.Builder`."""
    loss = loss_of_branches(head, class_weights, free_bytes, kind=ReachLoss)
    both = BranchesLoss((loss, loss), AUXILIARY_SHARES, AUXILIARY_SHARES)
    return both if head.has_auxiliary else loss, loss.gains(config)
