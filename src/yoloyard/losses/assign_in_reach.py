"""Task-aligned assignment as MultimediaTechLab's YOLOv9 has it: no box goes without a point, and bins must reach it.

Shapes: B batch, M boxes per image (padded), m boxes of a chunk, P anchor points, C classes, K = TOP_K.

It differs from `assign` in this: a point whose distribution can't reach all sides of a box is no candidate, and small
boxes are not widened; a box without a candidate takes the point that suits it best, wherever it is; a point that
several boxes select goes to the one among these that it overlaps most. As there, no shape depends on the data, nothing
waits for the device, and boxes are taken in chunks, which changes nothing.
"""

import torch
from torch import Tensor

from yoloyard.losses.assign import PAIRS_AT_ONCE, TOP_K, Assignment, Shapes, alignment_of, pairwise_overlap, scored


@torch.no_grad()
def assign_in_reach(
    predicted_xyxy: Tensor,
    predicted_scores: Tensor,
    points: Tensor,
    reach: Tensor,
    boxes_xyxy: Tensor,
    labels: Tensor,
    pairs_at_once: int = PAIRS_AT_ONCE,
) -> Assignment:
    """Assign boxes to anchor points; `reach` (P,), pixels, is how far a side may be from a point.

    The other arguments are those of `assign.assign`.
    """
    num_images, num_points, _ = predicted_xyxy.shape
    num_boxes = boxes_xyxy.shape[1]
    if num_boxes == 0:
        none = predicted_xyxy.new_zeros(num_images, num_points)
        return Assignment(torch.zeros_like(predicted_xyxy), none.long(), none, none.bool())
    classes, is_padding = labels.clamp(min=0), (labels < 0).unsqueeze(-1)
    roots = predicted_scores.transpose(1, 2).sqrt().contiguous()  # (B, C, P): a box takes a row
    shapes = Shapes.of(torch.cat((boxes_xyxy.movedim(-1, 0), predicted_xyxy.movedim(-1, 0)), dim=2))
    predicted = shapes.part(slice(num_boxes, None), -2)

    chunks = []
    chunk = max(1, pairs_at_once // (num_images * num_points))
    for start in range(0, num_boxes, chunk):
        part = slice(start, min(start + chunk, num_boxes))
        own = shapes.part(part, -1)
        overlap = pairwise_overlap(own, predicted)  # (B, m, P)
        alignment = alignment_of(roots.gather(1, classes[:, part, None].expand_as(overlap)), overlap)
        alignment.masked_fill_(is_padding[:, part], 0)
        suits_best = alignment.max(dim=2, keepdim=True)
        inside = candidates(own.low, own.high, points, reach)
        top = alignment.mul_(inside).topk(min(TOP_K, num_points), dim=2, sorted=False)  # (B, m, K)
        is_left = (top.values > 0).any(dim=2, keepdim=True).logical_not()
        value = torch.where(is_left, suits_best.values, top.values[..., :1])
        point = torch.where(is_left, suits_best.indices, top.indices[..., :1])
        selected = torch.cat((value, top.values[..., 1:]), dim=2) > 0
        point = torch.cat((point, top.indices[..., 1:]), dim=2)
        chunks.append((point, selected, overlap.gather(2, point)))
        del overlap, alignment, inside  # not beside those of the next chunk

    point, selected, overlap = (torch.cat(parts, dim=1) for parts in zip(*chunks, strict=True))
    numbers = torch.arange(num_boxes, device=labels.device)[:, None].expand_as(point).flatten(1)
    point, selected, overlap = (each.flatten(1) for each in (point, selected, overlap))  # (B, M * K)
    overlap = torch.where(selected, overlap, -1.0)
    best_overlap = overlap.new_full((num_images, num_points), -1).scatter_reduce_(1, point, overlap, "amax")
    is_best = (overlap == best_overlap.gather(1, point)).logical_and_(selected)
    box_of_point = torch.full_like(best_overlap, num_boxes, dtype=torch.int64)
    box_of_point.scatter_reduce_(1, point, torch.where(is_best, numbers, num_boxes), "amin")
    foreground = box_of_point < num_boxes
    box_of_point, overlap = box_of_point * foreground, best_overlap.clamp(min=0)

    point_labels = classes.gather(1, box_of_point)
    alignment = alignment_of(roots.gather(1, point_labels.unsqueeze(1)).squeeze(1), overlap)
    return scored(boxes_xyxy, point_labels, box_of_point, alignment, overlap, foreground)


def candidates(low: Tensor, high: Tensor, points: Tensor, reach: Tensor) -> Tensor:
    """Which points lie in or on a box, with no side farther away than their `reach` (P,); bool (B, m, P).

    `low`, `high` (2, B, m, 1) and `points` (P, 2) in pixels.
    """
    planes = points.movedim(-1, 0)[:, None, None]  # (2, 1, 1, P)
    inside = (planes >= low).logical_and_(planes <= high)
    return inside.logical_and_(planes - reach <= low).logical_and_(planes + reach >= high).all(dim=0)
