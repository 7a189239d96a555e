"""The losses, a file each. A head names its own; its entry below builds it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from yoloyard.common.errors import UserError
from yoloyard.config.settings import TrainConfig
from yoloyard.losses import anchor_based, branches, task_aligned

# (maps, boxes_xyxy (B, M, 4) in pixels of the input, labels (B, M), -1 in padded slots) to a sum and a norm, tensors of
# equal length, for each part of the loss by its name; the caller divides, so that processes can share one normaliser.
# What is not learned from (background, padding) weighs zero in a sum: shapes stay fixed. A criterion that changes with
# the epoch, counted from 0, has a method `set_epoch(epoch, epochs)`, which is called before each batch.
Criterion = Callable[[list[Tensor], Tensor, Tensor], dict[str, tuple[Tensor, Tensor]]]
# (head, config, class_weights (C,) or None, free_bytes of the device or None) to the criterion and the parts' gains
Builder = Callable[[Any, TrainConfig, Tensor | None, int | None], tuple[Criterion, dict[str, float]]]

LOSSES: dict[str, Builder] = {
    "anchor_based": anchor_based.build,
    "auxiliary": branches.build_auxiliary,
    "end_to_end": branches.build_end_to_end,
    "task_aligned": task_aligned.build,
}


def build_criterion(
    head: Any, config: TrainConfig, free_bytes: int | None = None
) -> tuple[Criterion, dict[str, float]]:
    """The loss that `head.criterion` names and the gain of each of its parts; the head lies on its device already.

    In a user file `criterion` may be a method of the head instead: a builder without the first argument. `free_bytes`
    of the device, if known: the more there are, the fewer and larger operations the loss may make. Raises UserError for
    a name that isn't there.
    """
    weights = None
    if config.class_weights is not None:
        numbers = [float(number) for number in config.class_weights.split(",")]
        weights = torch.tensor(numbers, device=next(head.parameters()).device)
    if callable(head.criterion):
        return head.criterion(config, weights, free_bytes)
    if head.criterion not in LOSSES:
        raise UserError(f"unknown criterion {head.criterion!r} of a head: there are {', '.join(LOSSES)}")
    return LOSSES[head.criterion](head, config, weights, free_bytes)
