"""The loss of heads with two pairs of branches: one finds each object many times, the other one finds it once.

Shapes: B batch, M boxes per image, C classes.

Sources: Wang et al., "YOLOv10" (2024), section 3.1, for two assignments; YOLO26 (2026) for weights that move.
"""

from typing import Any

from torch import Tensor

from yoloyard.config.settings import TrainConfig
from yoloyard.losses.task_aligned import TaskAlignedLoss, joined, loss_of_branches

FIRST_SHARE, LAST_SHARE = 0.8, 0.1  # of the one-to-many branches in the loss of the first and of the last epoch


class EndToEndLoss:
    """`criterion(maps, boxes, labels)` for maps (B, 2 * outputs, h, w), those of the one-to-many branches first.

    Each pair of branches is assigned by its own predictions, and has its own norm.
    """

    def __init__(self, many: TaskAlignedLoss, one: TaskAlignedLoss) -> None:
        self.branches = many, one
        self.set_epoch(0, 1)

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Take the shares of both pairs that belong to `epoch`, from 0, of a training of `epochs`."""
        left = max(1 - epoch / max(epochs - 1, 1), 0.0)
        many = left * (FIRST_SHARE - LAST_SHARE) + LAST_SHARE
        self.shares = many, 1 - many

    def __call__(self, maps: list[Tensor], boxes_xyxy: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The parts of `TaskAlignedLoss`: sums (2,), times the shares, and norms (2,), those of one-to-many first.

        `boxes_xyxy` (B, M, 4) pixels of the network's input, `labels` (B, M) with -1 in padded slots.
        """
        halves = zip(*(level.chunk(2, dim=1) for level in maps), strict=True)
        pairs = zip(self.branches, halves, strict=True)
        return joined([loss(list(half), boxes_xyxy, labels) for loss, half in pairs], self.shares)


def build(
    head: Any, config: TrainConfig, class_weights: Tensor | None, free_bytes: int | None
) -> tuple[EndToEndLoss, dict[str, float]]:
    """The loss of an `EndToEndHead` with both pairs of branches, see `losses.Builder`."""
    many, one = (loss_of_branches(head, class_weights, free_bytes, best_only) for best_only in (False, True))
    gains = {"box": config.loss.box, "cls": config.loss.cls, many.name_of_sides: config.loss.dfl}
    return EndToEndLoss(many, one), gains
