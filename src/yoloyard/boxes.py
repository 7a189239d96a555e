"""Boxes as tensors: formats, overlaps, anchor points.

Shapes: ... any leading dimensions (they broadcast), n and m boxes, P anchor points.
Boxes are xyxy (left, top, right, bottom) in pixels unless the name says otherwise.
"""

import math

import torch
from torch import Tensor


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Corners (..., 4) to centre and size (..., 4), same unit."""
    top_left, bottom_right = boxes_xyxy.split(2, dim=-1)
    return torch.cat(((top_left + bottom_right) / 2, bottom_right - top_left), dim=-1)


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Centre and size (..., 4) to corners (..., 4), same unit."""
    centre, size = boxes_cxcywh.split(2, dim=-1)
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def pairwise_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Plain intersection over union of (..., n, 4) with (..., m, 4), as (..., n, m); 0 where both are empty."""
    # A plane for each edge: the innermost dimension is then m numbers in a row, not 2 or 4.
    left, top, right, bottom = boxes_xyxy.movedim(-1, 0).contiguous().unsqueeze(-1)
    left_too, top_too, right_too, bottom_too = others_xyxy.movedim(-1, 0).contiguous().unsqueeze(-2)
    width = (right.minimum(right_too) - left.maximum(left_too)).clamp(min=0)
    height = (bottom.minimum(bottom_too) - top.maximum(top_too)).clamp(min=0)
    intersection = width * height
    union = (right - left) * (bottom - top) + (right_too - left_too) * (bottom_too - top_too) - intersection
    return torch.where(union > 0, intersection / union, 0)


def complete_iou(predicted_xyxy: Tensor, target_xyxy: Tensor, eps: float = 1e-7) -> Tensor:
    """CIoU of boxes that broadcast against each other, (..., 4) to (...), in -1.5 .. 1.

    The trade-off weight alpha is a constant for the gradient. Heights and the union carry `eps`, widths don't, as in
    the published recipe. Source: Zheng et al., "Distance-IoU Loss" (AAAI 2020), section "CIoU loss".
    """
    px1, py1, px2, py2 = predicted_xyxy.unbind(-1)
    tx1, ty1, tx2, ty2 = target_xyxy.unbind(-1)
    predicted_width, predicted_height = px2 - px1, py2 - py1 + eps
    target_width, target_height = tx2 - tx1, ty2 - ty1 + eps

    overlap_width = (px2.minimum(tx2) - px1.maximum(tx1)).clamp(min=0)
    overlap_height = (py2.minimum(ty2) - py1.maximum(ty1)).clamp(min=0)
    intersection = overlap_width * overlap_height
    union = predicted_width * predicted_height + target_width * target_height - intersection + eps
    iou = intersection / union

    enclosing_width = px2.maximum(tx2) - px1.minimum(tx1)
    enclosing_height = py2.maximum(ty2) - py1.minimum(ty1)
    enclosing_diagonal = enclosing_width.square() + enclosing_height.square() + eps
    centre_distance = ((tx1 + tx2 - px1 - px2).square() + (ty1 + ty2 - py1 - py2).square()) / 4

    angle = torch.atan(target_width / target_height) - torch.atan(predicted_width / predicted_height)
    aspect = 4 / math.pi**2 * angle.square()
    with torch.no_grad():
        alpha = aspect / (1 - iou + aspect + eps)
    return iou - (centre_distance / enclosing_diagonal + aspect * alpha)


def anchor_points(
    map_sizes: list[tuple[int, int]], strides: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cell centres of all levels in grid units (P, 2) as x, y, and each one's stride in pixels (P, 1).

    Row-major within a level, levels in the order of `strides`.
    """
    points, point_strides = [], []
    for (height, width), stride in zip(map_sizes, strides, strict=True):
        y = torch.arange(height, device=device, dtype=torch.float32) + 0.5
        x = torch.arange(width, device=device, dtype=torch.float32) + 0.5
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((grid_x, grid_y), dim=-1).view(-1, 2))
        point_strides.append(torch.full((height * width, 1), float(stride), device=device))
    return torch.cat(points), torch.cat(point_strides)
