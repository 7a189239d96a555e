"""The loss of YOLOv9 in training: that of its own branches, and a share of that of the auxiliary ones.

Shapes: B batch, M boxes per image, P anchor points over all levels, C classes.

Sources: Wang et al., "YOLOv9" (2024), section 4.1; the weight and the assignment are those of the MIT implementation of
MultimediaTechLab.
"""

from typing import Any

from torch import Tensor

from yoloyard.config.settings import TrainConfig
from yoloyard.losses import task_aligned
from yoloyard.losses.assign import Assignment
from yoloyard.losses.assign_in_reach import assign_in_reach
from yoloyard.losses.task_aligned import BINS, MAX_DISTANCE, TaskAlignedLoss, joined

SHARES = 1.0, 0.25  # of the own and of the auxiliary branches


class ReachLoss(TaskAlignedLoss):
    """A `TaskAlignedLoss` of one set of branches, assigned by `assign_in_reach`."""

    def assign(
        self,
        predicted_xyxy: Tensor,
        scores: Tensor,
        points: Tensor,
        strides: Tensor,
        boxes_xyxy: Tensor,
        labels: Tensor,
    ) -> Assignment:
        """As `TaskAlignedLoss.assign` says."""
        reach = MAX_DISTANCE * strides.squeeze(1)
        return assign_in_reach(predicted_xyxy, scores, points, reach, boxes_xyxy, labels, self.pairs_at_once)


class AuxiliaryLoss:
    """`criterion(maps, boxes, labels)` for maps (B, 64 + C, h, w), or twice as many channels with auxiliary branches.

    Each set of branches is assigned by its own predictions, and has its own norm.
    """

    def __init__(self, of_branches: ReachLoss) -> None:
        self.of_branches = of_branches
        self.path_outputs = 4 * BINS + of_branches.num_classes

    def __call__(self, maps: list[Tensor], boxes_xyxy: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums (n,) and norms (n,) of `box`, `cls` and `dfl`: those of the own branches, then of the auxiliary ones.

        The sums of the latter are times their share. `boxes_xyxy` (B, M, 4) pixels of the network's input,
        `labels` (B, M) with -1 in padded slots.
        """
        sets = zip(*(level.split(self.path_outputs, dim=1) for level in maps), strict=True)
        return joined([self.of_branches(list(levels), boxes_xyxy, labels) for levels in sets], SHARES)


def build(
    head: Any, config: TrainConfig, class_weights: Tensor | None, free_bytes: int | None
) -> tuple[AuxiliaryLoss, dict[str, float]]:
    """The loss of an `AuxiliaryHead`, see `losses.Builder`."""
    plain, gains = task_aligned.build(head, config, class_weights, free_bytes)
    return AuxiliaryLoss(ReachLoss(head.strides, head.num_classes, class_weights, plain.pairs_at_once)), gains
