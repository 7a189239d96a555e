"""What the step measures of itself now and then, on the device: nothing here waits for it or changes the training."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from yoloyard.common.device import Precision
from yoloyard.common.structures import Batch, images_to_float
from yoloyard.losses import Criterion
from yoloyard.models.detector import Detector

UPDATES_PERIOD = 10  # batches between two measurements of the updates
LABELS_PERIOD = 10  # updates between two comparisons with the labels of other images
MAX_WATCHED_NUMBERS = 2**18  # of a weight whose updates are measured; larger ones would cost memory


def watched(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The decayed weights whose updates are measured: all but the largest ones, no biases and no normalisations."""
    groups = [group["params"] for group in optimizer.param_groups if group.get("name") == "weight"]
    return [weight for group in groups for weight in group if weight.numel() <= MAX_WATCHED_NUMBERS]


@torch.no_grad()
def update_ratio(weights: Sequence[Tensor], before: Sequence[Tensor], found_inf: Tensor) -> Tensor:
    """Length of the update from `before` to `weights` over the length of `before` (); nan if `found_inf` () is 1."""
    update = torch.stack(torch._foreach_norm(torch._foreach_sub(list(weights), list(before)))).norm()
    length = torch.stack(torch._foreach_norm(list(before))).norm()
    return torch.where(found_inf > 0, math.nan, update / length.clamp(min=1e-12))


@torch.no_grad()
def label_ratio(
    criterion: Criterion,
    gains: Mapping[str, float],
    maps: Sequence[Tensor],
    batch: Batch,
    parts: Mapping[str, tuple[Tensor, Tensor]],
) -> Tensor:
    """The loss of a batch over the loss with each image's labels given to the next one (); `parts` are the batch's own.

    About 1: what the network finds has nothing to do with the image.
    """
    others = criterion([each.detach() for each in maps], batch.boxes.roll(1, 0), batch.labels.roll(1, 0))
    own, shuffled = (
        torch.stack([(gain * of[name][0] / of[name][1].clamp(min=1)).sum() for name, gain in gains.items()]).sum()
        for of in (parts, others)
    )
    return own.detach().float() / shuffled.float()


def sample_norm(
    model: Detector, criterion: Criterion, gains: Mapping[str, float], precision: Precision, batch: Batch
) -> float:
    """Norm of the gradient of the loss of `batch` alone, by the statistics of BatchNorm as they are. Waits for it.

    Leaves no trace in the model.
    """
    is_training, parameters = model.training, [each for each in model.parameters() if each.requires_grad]
    model.eval()
    with precision.autocast():
        maps = model(images_to_float(batch.images))
    parts = criterion(maps, batch.boxes, batch.labels)
    loss = torch.stack([(gain * parts[name][0] / parts[name][1].clamp(min=1)).sum() for name, gain in gains.items()])
    gradients = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
    model.train(is_training)
    return float(torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm())
