"""The loss of the anchor-free families: task-aligned assignment, CIoU, distribution focal loss, cross-entropy.

Shapes: B batch, M boxes per image, P anchor points over all levels, C classes.

Each part is a sum over all points of all images, background points weighing zero: shapes stay fixed. The caller
divides by the norm, so that several processes can share one normaliser.

Sources: Feng et al., "TOOD" (ICCV 2021) for the assignment and the class loss with target scores; Li et al.,
"Generalized Focal Loss" (NeurIPS 2020), section 3.2, for the distribution; Zheng et al. (AAAI 2020) for CIoU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from yoloyard.boxes import anchor_points, complete_iou
from yoloyard.losses.assign import Assignment, assign

BINS = 16  # of each side's distance, in grid units 0..15
LARGEST_DISTANCE = BINS - 1 - 0.01


class TaskAlignedLoss:
    """`criterion(maps, boxes, labels)` for detectors whose maps are (B, 4 * 16 + C, h, w), box logits first.

    `class_weights` (C,) multiply what each class's column adds to the class loss.
    """

    def __init__(self, strides: tuple[int, ...], num_classes: int, class_weights: Tensor | None = None) -> None:
        self.strides = strides
        self.num_classes = num_classes
        self.class_weights = class_weights

    def __call__(self, maps: list[Tensor], boxes_xyxy: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums (1,) and norms (1,) of `box`, `cls` and `dfl` on this process.

        `boxes_xyxy` (B, M, 4) pixels of the network's input, `labels` (B, M) with -1 in padded slots. The norm of all
        three is the sum of the target scores. Computed in float32 whatever the maps' type.
        """
        sizes = [(level.shape[2], level.shape[3]) for level in maps]
        points, strides = anchor_points(sizes, self.strides, maps[0].device)
        # (B, h * w, K) is how a channels_last map lies in memory, so nothing is transposed, back and forth
        levels = [level.permute(0, 2, 3, 1).flatten(1, 2).split((4 * BINS, self.num_classes), 2) for level in maps]
        box_logits, class_logits = (torch.cat(parts, dim=1).float() for parts in zip(*levels, strict=True))
        log_distribution = functional.log_softmax(box_logits.unflatten(2, (4, BINS)), dim=3)  # (B, P, 4, 16)
        bins = torch.arange(BINS, dtype=torch.float32, device=box_logits.device)
        left_top, right_bottom = (log_distribution.exp() @ bins).split(2, dim=2)
        predicted_grid = torch.cat((points - left_top, points + right_bottom), dim=2)  # xyxy in grid units
        scores = class_logits.detach().sigmoid()

        assignment = assign(
            predicted_grid.detach() * strides,
            scores,
            points * strides,
            boxes_xyxy,
            labels,
        )
        weights = assignment.target_scores
        target_grid = assignment.boxes_xyxy / strides
        # A background point has the zero box as its target; the cell itself keeps every term finite.
        cell = torch.cat((points - 0.5, points + 0.5), dim=1)
        target_grid = torch.where(assignment.foreground.unsqueeze(-1), target_grid, cell)

        box = ((1 - complete_iou(predicted_grid, target_grid)) * weights).sum()
        dfl = (_distribution_loss(log_distribution, target_grid, points) * weights).sum()
        norm = weights.sum().reshape(1)
        return {
            "box": (box.reshape(1), norm),
            "cls": (_class_loss(class_logits, scores, assignment, self.class_weights).reshape(1), norm),
            "dfl": (dfl.reshape(1), norm),
        }


def _class_loss(class_logits: Tensor, scores: Tensor, assignment: Assignment, class_weights: Tensor | None) -> Tensor:
    """Binary cross-entropy summed over all points and classes, these weighted by `class_weights` (C,) if given.

    Each point has at most one target above zero, and bce(x, y) = softplus(x) - x * y: no dense targets are needed.
    """
    own_logit = class_logits.gather(2, assignment.labels.unsqueeze(-1)).squeeze(-1)
    none_true = _SoftplusSum.apply(class_logits, scores)  # (C,)
    if class_weights is None:
        return none_true.sum() - (own_logit * assignment.target_scores).sum()
    own_weights = class_weights[assignment.labels]
    return (none_true * class_weights).sum() - (own_logit * assignment.target_scores * own_weights).sum()


class _SoftplusSum(torch.autograd.Function):
    """softplus of (B, P, C) summed over B and P; its derivative, the sigmoid, is there already.

    softplus(x) = max(x, 0) + log(1 + z) with z = exp(-|x|). torch has a slow log1p and a fast log on a
    CPU: u = 1 + z is taken, and what it has lost by rounding is added, log(1 + z) = log(u) + (z - (u - 1)) / u.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, sigmoid: Tensor) -> Tensor:
        ctx.save_for_backward(sigmoid)
        z = logits.abs().neg_().exp_()
        u = z + 1
        lost = z.sub_(u).add_(1).div_(u)
        return u.log_().add_(lost).add_(logits.clamp(min=0)).sum(dim=(0, 1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (sigmoid,) = ctx.saved_tensors
        return sigmoid * gradients[0], None


def _distribution_loss(log_distribution: Tensor, target_grid: Tensor, points: Tensor) -> Tensor:
    """Cross-entropy with the two bins around each side's true distance, mean of the sides, (B, P)."""
    target_left_top, target_right_bottom = target_grid.split(2, dim=2)
    distance = torch.cat((points - target_left_top, target_right_bottom - points), dim=2)
    distance = distance.clamp(0, LARGEST_DISTANCE)
    low = distance.floor()
    weight_high = distance - low
    index = torch.stack((low, low + 1), dim=3).long()
    log_low, log_high = log_distribution.gather(3, index).unbind(3)
    return -(log_low * (1 - weight_high) + log_high * weight_high).mean(dim=2)
