"""Task-aligned assignment: which anchor points learn which box, and how strongly.

Shapes: B batch, M boxes per image (padded), m boxes of a chunk, P anchor points, C classes, K = `top_k`.

Nothing here depends on the data in shape, and nothing waits for the device. Boxes are taken in chunks, so that memory
is that of one chunk; this is exact, since everything up to the top-k is independent for each box, and conflicts need
only sums and a running maximum for each point. A GPU waits for the host here, so what is computed for one box or one
point comes before the pairs, and x and y are the two planes of one tensor (2, ...): fewer, larger operations.

Source: Feng et al., "TOOD: Task-aligned One-stage Object Detection" (ICCV 2021), section 3.2, with the overlap measured
as CIoU and boxes narrower than the second stride widened for the search of candidates, as in the published recipe. Wang
et al., "YOLOv10" (2024), section 3.1, for one point a box.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from yoloyard.common.boxes import IOU_EPS

TOP_K = 10
MINIMUM_SIDE = 16.0  # pixels; the second stride of 8, 16, 32
EPS = 1e-9
PAIRS_AT_ONCE = 2**22  # of a box and a point, where nothing is known of memory; on a CPU it suits the caches
BYTES_OF_A_PAIR = 22  # that are needed at once, at most


@dataclass(frozen=True)
class Assignment:
    """What each anchor point learns."""

    boxes_xyxy: Tensor  # (B, P, 4) pixels; any box where the point is background
    labels: Tensor  # (B, P) int64; any class where the point is background
    target_scores: Tensor  # (B, P) score that the point's class should reach, 0 for background
    foreground: Tensor  # (B, P) bool


class Shapes(NamedTuple):
    """What the overlap needs of boxes, (..., n) or (2, ..., n) with x and y as planes; pixels."""

    low: Tensor  # (2, ...)
    high: Tensor  # (2, ...)
    size: Tensor  # (2, ...)
    double_centre: Tensor  # (2, ...)
    area: Tensor
    angle: Tensor  # of the diagonal, as a share of a right angle

    @classmethod
    def of(cls, planes: Tensor) -> "Shapes":
        """`planes` (4, ..., n): left, top, right, bottom. Heights carry IOU_EPS as in `boxes.complete_iou`."""
        low, high = planes.split(2)
        size = high - low
        width, height = size[0], size[1] + IOU_EPS
        return cls(low, high, size, low + high, width * height, torch.atan(width / height).mul_(2 / math.pi))

    def part(self, part: slice, dim: int) -> "Shapes":
        """Some of the boxes, with a new dimension at `dim` for the other side of the pairs."""
        return Shapes(*(value[..., part].unsqueeze(dim) for value in self))


@torch.no_grad()
def assign(
    predicted_xyxy: Tensor,
    predicted_scores: Tensor,
    points: Tensor,
    boxes_xyxy: Tensor,
    labels: Tensor,
    pairs_at_once: int = PAIRS_AT_ONCE,
    top_k: int = TOP_K,
    best_only: bool = False,
    minimum_side: float = MINIMUM_SIDE,
) -> Assignment:
    """Assign boxes to anchor points: to each box the `top_k` that suit it best, or one of them (`best_only`).

    `predicted_xyxy` (B, P, 4) pixels, `predicted_scores` (B, P, C) in 0..1, `points` (P, 2) pixels,
    `boxes_xyxy` (B, M, 4) pixels, `labels` (B, M) with -1 in padded slots. `pairs_at_once` bounds the memory, at
    BYTES_OF_A_PAIR each; the result does not depend on it. With `best_only` a box that lost all its points to others
    gets none. For `minimum_side` see `widened`.
    """
    num_images, num_points, _ = predicted_xyxy.shape
    num_boxes = boxes_xyxy.shape[1]
    if num_boxes == 0:
        none = predicted_xyxy.new_zeros(num_images, num_points)
        return Assignment(torch.zeros_like(predicted_xyxy), none.long(), none, none.bool())
    classes = labels.clamp(min=0)
    # (B, C, P): a box takes a row
    roots = predicted_scores.new_empty(num_images, predicted_scores.shape[2], num_points)
    torch.sqrt(predicted_scores.transpose(1, 2), out=roots)
    shapes = Shapes.of(torch.cat((boxes_xyxy.movedim(-1, 0), predicted_xyxy.movedim(-1, 0)), dim=2))
    predicted = shapes.part(slice(num_boxes, None), -2)
    own = shapes.part(slice(num_boxes), -1)
    low, high = widened(own.low, own.high, own.size, minimum_side)
    low.masked_fill_((labels < 0).unsqueeze(-1), math.inf)  # nothing is inside
    planes_of_points = points.movedim(-1, 0)[:, None, None]  # (2, 1, 1, P)

    chunks = []
    chunk = max(1, pairs_at_once // (num_images * num_points))
    for start in range(0, num_boxes, chunk):
        part = slice(start, min(start + chunk, num_boxes))
        inside = points_between(planes_of_points, low[:, :, part], high[:, :, part])  # (B, m, P)
        overlap = pairwise_overlap(shapes.part(part, -1), predicted).mul_(inside)
        rows = classes[:, part, None].expand_as(overlap)
        top = alignment_of(roots.gather(1, rows), overlap).topk(min(top_k, num_points), dim=2, sorted=False).indices
        chunks.append((top, inside.gather(2, top), overlap.gather(2, top)))  # (B, m, K)
        chunk_overlap, chunk_box = overlap.max(dim=1)
        if start == 0:
            best_overlap, best_box = chunk_overlap, chunk_box
        else:
            better = chunk_overlap > best_overlap
            best_overlap = torch.where(better, chunk_overlap, best_overlap)
            best_box = torch.where(better, chunk_box + start, best_box)
        del inside, overlap, rows  # not beside those of the next chunk

    top, inside, overlap = (
        torch.cat(parts, dim=1) if len(parts) > 1 else parts[0] for parts in zip(*chunks, strict=True)
    )
    selected = inside.to(overlap.dtype)
    numbers = torch.arange(num_boxes, device=labels.device)[:, None] * selected
    # how many boxes select a point; which one and with which overlap, where it is a single one
    sums = torch.stack((selected, numbers, overlap)).flatten(2)
    sums = sums.new_zeros(3, num_images, num_points).scatter_add_(2, top.flatten(1).expand_as(sums), sums)
    selections, only_selector, only_overlap = sums
    is_shared = selections > 1
    box_of_point = torch.where(is_shared, best_box, only_selector.long())
    overlap = torch.where(is_shared, best_overlap, only_overlap)

    point_labels = classes.gather(1, box_of_point)
    alignment = alignment_of(roots.gather(1, point_labels.unsqueeze(1)).squeeze(1), overlap)
    foreground = selections > 0
    if best_only:
        foreground = _best_points(alignment, box_of_point, num_boxes)
        alignment, overlap = alignment * foreground, overlap * foreground
    return scored(boxes_xyxy, point_labels, box_of_point, alignment, overlap, foreground)


def scored(
    boxes_xyxy: Tensor, labels: Tensor, box_of_point: Tensor, alignment: Tensor, overlap: Tensor, foreground: Tensor
) -> Assignment:
    """The assignment of points to boxes (B, M, 4); all else is of points, (B, P), and zero in the background.

    The target score is the alignment as a share of the box's best one, times the best overlap of the box.
    """
    # The best alignment and the best overlap that each box reaches, over the points that it was given in the end.
    both = torch.stack((alignment, overlap))  # (2, B, P)
    best = both.new_zeros(2, *boxes_xyxy.shape[:2]).scatter_reduce_(2, box_of_point.expand_as(both), both, "amax")
    top_alignment, top_overlap = best.gather(2, box_of_point.expand_as(both))
    return Assignment(
        boxes_xyxy=boxes_xyxy.gather(1, box_of_point.unsqueeze(-1).expand(-1, -1, 4)),
        labels=labels,
        target_scores=alignment.mul_(top_overlap).div_(top_alignment.add_(EPS)),
        foreground=foreground,
    )


def _best_points(alignment: Tensor, box_of_point: Tensor, num_boxes: int) -> Tensor:
    """Is a point that of its box with the best `alignment` (B, P), above zero? Of equal ones the first; (B, P)."""
    numbers = torch.arange(alignment.shape[1], device=alignment.device).expand_as(box_of_point)
    none = alignment.new_zeros(len(alignment), num_boxes)
    best = none.scatter_reduce(1, box_of_point, alignment, "amax").gather(1, box_of_point)
    candidates = torch.where((alignment == best).logical_and_(alignment > 0), numbers, numbers.shape[1])
    first = torch.full_like(none, numbers.shape[1], dtype=torch.int64)
    return first.scatter_reduce_(1, box_of_point, candidates, "amin").gather(1, box_of_point) == numbers


def minimum_side_of(strides: Sequence[int]) -> float:
    """The side, pixels, to which the boxes of a head with these strides are `widened`: its second stride."""
    return float(strides[1]) if len(strides) > 1 else MINIMUM_SIDE


def points_between(planes_of_points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Which points lie strictly between two corners; all have x and y as planes, the first dimension."""
    return (planes_of_points > low).logical_and_(planes_of_points < high).all(dim=0)


def widened(low: Tensor, high: Tensor, size: Tensor, minimum_side: float) -> tuple[Tensor, Tensor]:
    """Two corners of boxes, pixels; sides of `size` below `minimum_side` are widened about their centre."""
    more = size.clamp(min=minimum_side).sub_(size)
    return torch.sub(low, more, alpha=0.5), torch.add(high, more, alpha=0.5)


def pairwise_overlap(boxes: Shapes, predicted: Shapes) -> Tensor:
    """`boxes.complete_iou` of (B, m, 1) with (B, 1, P), clipped at 0, as (B, m, P).

    The most expensive step of the loss. Results are written in place, and an enclosing side is the sum of both sides
    less their (signed) overlap.
    """
    distance = torch.sub(boxes.double_centre, predicted.double_centre).square_().sum(dim=0)  # four times the square
    overlap = torch.minimum(boxes.high, predicted.high).sub_(torch.maximum(boxes.low, predicted.low))  # (2, B, m, P)
    enclosing = torch.add(boxes.size, predicted.size).sub_(overlap).square_()
    distance.div_(enclosing[0].add_(enclosing[1]).add_(IOU_EPS))
    del enclosing
    overlap = overlap.clamp_(min=0)
    intersection = overlap[0].mul_(overlap[1])
    iou = intersection.div_(torch.add(boxes.area + IOU_EPS, predicted.area).sub_(intersection))
    aspect = torch.sub(boxes.angle, predicted.angle).square_()
    certainty = torch.sub(aspect, iou).add_(1 + IOU_EPS)
    return iou.sub_(distance, alpha=0.25).sub_(aspect.square_().div_(certainty)).clamp_(min=0)


def alignment_of(root_of_score: Tensor, overlap: Tensor) -> Tensor:
    """score^0.5 * overlap^6; `root_of_score` is score^0.5. The third power is a product, other powers are slow."""
    return overlap.pow(3).square_().mul_(root_of_score)
