"""Which loss a detector is trained by: that of the kind of its head, also for a network of the user's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from yoloyard.config.settings import TrainConfig
from yoloyard.losses.anchor_based import AnchorBasedLoss
from yoloyard.losses.assign import BYTES_OF_A_PAIR, PAIRS_AT_ONCE
from yoloyard.losses.task_aligned import TaskAlignedLoss
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorBasedHead
from yoloyard.training.setup import class_weights

# (maps, boxes_xyxy, labels) to (sums, norms) by the name of the part
Criterion = Callable[[list[Tensor], Tensor, Tensor], dict[str, tuple[Tensor, Tensor]]]


SHARE_OF_MEMORY = 1 / 8  # of what is free before the first step; the forward's maps want the rest


def choose_criterion(
    detector: Detector, config: TrainConfig, reads: bool = False, free_bytes: int | None = None
) -> tuple[Criterion, dict[str, float]]:
    """The loss for `detector`, which lies on its device already, and the gain of each of its parts.

    `reads`: shapes may depend on what is read from the device, which is quicker where that costs nothing.
    `free_bytes` of the device, if known: the loss takes a part of it, and the more it has the fewer launches it needs.
    """
    loss, head = config.loss, detector.head
    weights = None
    if config.class_weights is not None:
        numbers = class_weights.parse(config.class_weights, head.num_classes)
        weights = torch.tensor(numbers, device=next(detector.parameters()).device)
    if not isinstance(head, AnchorBasedHead):
        gains = {"box": loss.box, "cls": loss.cls, "dfl": loss.dfl}
        pairs = PAIRS_AT_ONCE if free_bytes is None else int(free_bytes * SHARE_OF_MEMORY) // BYTES_OF_A_PAIR
        return TaskAlignedLoss(head.strides, head.num_classes, weights, reads, pairs), gains
    criterion = AnchorBasedLoss(
        head.anchors,
        head.strides,
        head.num_classes,
        loss.anchor_t,
        loss.label_smoothing,
        loss.cls_pw,
        loss.obj_pw,
        weights,
    )
    # As published, the gains are for 80 classes, 640 pixels and three levels.
    levels = 3 / len(head.strides)
    return criterion, {
        "box": loss.box * levels,
        "cls": loss.cls * levels * head.num_classes / 80,
        "obj": loss.obj * levels * (config.imgsz / 640) ** 2,
    }
