"""Task-aligned assignment: which anchor points learn which box, and how strongly.

Shapes: B batch, M boxes per image (padded), m boxes of a chunk, P anchor points, C classes, K = TOP_K.

Nothing here depends on the data in shape, and nothing waits for the device. Boxes are taken in chunks of a size that
follows from the shapes alone; this is exact, since everything up to the top-k is independent for each box, and the
conflicts need only running sums and a running maximum for each point. Memory is that of one chunk.

Source: Feng et al., "TOOD: Task-aligned One-stage Object Detection" (ICCV 2021), section 3.2, with the overlap measured
as CIoU and boxes narrower than `MINIMUM_SIDE` widened for the search of candidates, as in the published recipe.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from yoloyard.boxes import complete_iou

TOP_K = 10
MINIMUM_SIDE = 16.0  # pixels; the second stride
EPS = 1e-9
PAIRS_OF_A_CHUNK = 2**22  # box-point pairs looked at together: 16 MB for each intermediate result


@dataclass(frozen=True)
class Assignment:
    """What each anchor point is taught."""

    boxes_xyxy: Tensor  # (B, P, 4) pixels; zeros where the point is background
    labels: Tensor  # (B, P) int64; 0 where the point is background
    target_scores: Tensor  # (B, P) score that the point's class should reach, 0 for background
    foreground: Tensor  # (B, P) bool


@torch.no_grad()
def assign(
    predicted_xyxy: Tensor, predicted_scores: Tensor, points: Tensor, boxes_xyxy: Tensor, labels: Tensor
) -> Assignment:
    """Assign boxes to anchor points.

    `predicted_xyxy` (B, P, 4) pixels, `predicted_scores` (B, P, C) in 0..1, `points` (P, 2) pixels,
    `boxes_xyxy` (B, M, 4) pixels, `labels` (B, M) with -1 in padded slots.
    """
    num_images, num_points, _ = predicted_xyxy.shape
    num_boxes = boxes_xyxy.shape[1]
    real = labels >= 0
    classes = labels.clamp(min=0)
    scores_by_class = predicted_scores.transpose(1, 2).contiguous()  # (B, C, P): a box takes a row
    images = torch.arange(num_images, device=labels.device).unsqueeze(1)

    selections = torch.zeros(num_images, num_points, dtype=torch.int64, device=labels.device)
    only_selector = torch.zeros_like(selections)  # the box, where a single one selects the point
    best_overlap = predicted_xyxy.new_zeros(num_images, num_points)
    best_box = torch.zeros_like(selections)
    chunk = max(1, PAIRS_OF_A_CHUNK // (num_images * num_points))
    for start in range(0, num_boxes, chunk):
        part = slice(start, start + chunk)
        inside = is_inside(boxes_xyxy[:, part, None], points).logical_and_(real[:, part, None])  # (B, m, P)
        overlap = _pairwise_overlap(boxes_xyxy[:, part], predicted_xyxy).mul_(inside)
        alignment = alignment_of(scores_by_class[images, classes[:, part]], overlap)
        top = alignment.topk(min(TOP_K, num_points), dim=2, sorted=False).indices  # (B, m, K)
        selected = inside.gather(2, top).long().flatten(1)  # (B, m * K)
        numbers = torch.arange(start, min(start + chunk, num_boxes), device=labels.device)
        numbers = numbers[None, :, None].expand_as(top).flatten(1)
        selections.scatter_add_(1, top.flatten(1), selected)
        only_selector.scatter_add_(1, top.flatten(1), selected * numbers)
        chunk_overlap, chunk_box = overlap.max(dim=1)
        better = chunk_overlap > best_overlap
        best_overlap = torch.where(better, chunk_overlap, best_overlap)
        best_box = torch.where(better, chunk_box + start, best_box)

    foreground = selections > 0
    box_of_point = torch.where(selections > 1, best_box, only_selector)
    if num_boxes == 0:
        return Assignment(torch.zeros_like(predicted_xyxy), box_of_point, best_overlap, foreground)

    point_boxes = boxes_xyxy.gather(1, box_of_point.unsqueeze(-1).expand(-1, -1, 4))
    point_labels = classes.gather(1, box_of_point)
    inside = is_inside(point_boxes, points) & foreground
    overlap = complete_iou(point_boxes, predicted_xyxy).clamp(min=0) * inside
    alignment = alignment_of(predicted_scores.gather(2, point_labels.unsqueeze(-1)).squeeze(-1), overlap)
    # The best alignment and the best overlap that each box reaches, over the points that it was given in the end.
    none = predicted_xyxy.new_zeros(num_images, num_boxes)
    top_alignment = none.scatter_reduce(1, box_of_point, alignment, "amax").gather(1, box_of_point)
    top_overlap = none.scatter_reduce(1, box_of_point, overlap, "amax").gather(1, box_of_point)
    return Assignment(
        boxes_xyxy=point_boxes * foreground.unsqueeze(-1),
        labels=point_labels * foreground,
        target_scores=alignment * top_overlap / (top_alignment + EPS),
        foreground=foreground,
    )


def widened(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """The two corners (..., 2) of boxes (..., 4) pixels, small boxes widened about their centre."""
    low, high = boxes_xyxy.split(2, dim=-1)
    more = (MINIMUM_SIDE - (high - low)).clamp(min=0) / 2
    return low - more, high + more


def is_inside(boxes_xyxy: Tensor, points: Tensor) -> Tensor:
    """Is the point strictly inside the box, small boxes widened about their centre?

    `boxes_xyxy` (..., 4) must broadcast against the P `points`: (..., 1, 4) or (..., P, 4) gives bool (..., P).
    """
    low, high = widened(boxes_xyxy)
    x, y = points.unbind(-1)
    inside = (x > low[..., 0]).logical_and_(x < high[..., 0])
    return inside.logical_and_(y > low[..., 1]).logical_and_(y < high[..., 1])


def _pairwise_overlap(boxes_xyxy: Tensor, predicted_xyxy: Tensor, eps: float = 1e-7) -> Tensor:
    """`complete_iou` of (B, m, 4) with (B, P, 4), clipped at 0, as (B, m, P).

    The most expensive step of the loss: what depends on one box alone is computed before it is paired, results are
    written in place, and an enclosing side is the sum of both sides less their (signed) overlap.
    """
    x1, y1, x2, y2 = boxes_xyxy.unsqueeze(-1).unbind(-2)  # (B, m, 1)
    px1, py1, px2, py2 = predicted_xyxy.unsqueeze(1).unbind(-1)  # (B, 1, P)
    overlap_x = torch.minimum(x2, px2).sub_(torch.maximum(x1, px1))
    overlap_y = torch.minimum(y2, py2).sub_(torch.maximum(y1, py1))
    width, height, predicted_width, predicted_height = x2 - x1, y2 - y1, px2 - px1, py2 - py1
    diagonal = torch.add(width, predicted_width).sub_(overlap_x).square_()
    diagonal.add_(torch.add(height, predicted_height).sub_(overlap_y).square_()).add_(eps)
    intersection = overlap_x.clamp_(min=0).mul_(overlap_y.clamp_(min=0))
    height, predicted_height = height + eps, predicted_height + eps
    union = torch.add(width * height + eps, predicted_width * predicted_height).sub_(intersection)
    iou = intersection.div_(union)
    distance = torch.sub((x1 + x2) / 2, (px1 + px2) / 2).square_()
    distance.add_(torch.sub((y1 + y2) / 2, (py1 + py2) / 2).square_())
    angle, predicted_angle = torch.atan(width / height), torch.atan(predicted_width / predicted_height)
    aspect = torch.sub(angle * (2 / math.pi), predicted_angle * (2 / math.pi)).square_()
    certainty = torch.sub(aspect, iou).add_(1 + eps)
    return iou.sub_(distance.div_(diagonal)).sub_(aspect.square_().div_(certainty)).clamp_(min=0)


def alignment_of(scores: Tensor, overlap: Tensor) -> Tensor:
    """score^0.5 * overlap^6, with products in place of the slow power functions."""
    cube = overlap * overlap * overlap
    return scores.sqrt().mul_(cube.square_())
