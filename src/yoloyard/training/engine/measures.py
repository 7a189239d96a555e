"""What the step measures of itself now and then, on the device: nothing here waits for it or changes the training."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from yoloyard.common.structures import Batch, images_to_float
from yoloyard.models.detector import Detector

if TYPE_CHECKING:
    from yoloyard.training.engine.engine import Engine

Parts = dict[str, tuple[Tensor, Tensor]]  # of the loss, by name: sums and norms of this process
UPDATES_PERIOD = 10  # batches between two measurements of the updates
LABELS_PERIOD = 10  # updates between two comparisons with the labels of other images
MAX_WATCHED_NUMBERS = 2**18  # of a weight whose updates are measured; larger ones would cost memory


def watched(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The decayed weights whose updates are measured: all but the largest ones, no biases and no normalisations."""
    groups = [group["params"] for group in optimizer.param_groups if group["name"].endswith("weight")]
    return [weight for group in groups for weight in group if weight.numel() <= MAX_WATCHED_NUMBERS]


@torch.no_grad()
def update_ratio(
    weights: Sequence[Tensor], before: Sequence[Tensor], found_inf: Tensor, norm: Callable[[Sequence[Tensor]], Tensor]
) -> Tensor:
    """Length of the update from `before` to `weights` over the length of `before` (); nan if `found_inf` () is 1.

    `norm` is that of the strategy.
    """
    update, length = norm(torch._foreach_sub(list(weights), list(before)) if before else ()), norm(before)
    return torch.where(found_inf > 0, math.nan, update / length.clamp(min=1e-12))


def label_ratio_is_due(engine: "Engine", batch: Batch) -> bool:
    """Is the next batch of the run, which is `batch`, one whose `label_ratio` is measured?"""
    return engine.number % (LABELS_PERIOD * engine.schedule.accumulate) == 0 and len(batch.images) > 1


@torch.no_grad()
def label_ratio(engine: "Engine", maps: Sequence[Tensor], batch: Batch, parts: Parts) -> Tensor:
    """The loss of a batch over the loss with each image's labels given to the next one (); `parts` are the batch's own.

    About 1: what the network finds has nothing to do with the image.
    """
    others = engine.criterion([each.detach() for each in maps], batch.boxes.roll(1, 0), batch.labels.roll(1, 0))
    return (_loss(engine.gains, parts) / _loss(engine.gains, others)).detach()


def sample_norm(engine: "Engine", detector: Detector, batch: Batch) -> float:
    """Norm of the gradient of the loss of `batch` alone, by the statistics of BatchNorm as they are. Waits for it.

    Leaves `detector`, the whole network of the engine, in evaluation mode, otherwise as it was.
    """
    parameters, batch = [each for each in detector.parameters() if each.requires_grad], batch.to(engine.device)
    detector.eval()
    with engine.precision.autocast():
        maps = detector(images_to_float(batch.images))
    loss = _loss(engine.gains, engine.criterion(maps, batch.boxes, batch.labels))
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return float(get_total_norm([gradient for gradient in gradients if gradient is not None]))


def _loss(gains: Mapping[str, float], parts: Parts) -> Tensor:
    losses = [(gain * parts[name][0] / parts[name][1].clamp(min=1)).sum() for name, gain in gains.items()]
    return torch.stack(losses).float().sum()
