"""Boxes as tensors: formats, overlaps, anchor points.

Shapes: ... any leading dimensions (they broadcast), n and m boxes, P anchor points.
Boxes are xyxy (left, top, right, bottom) in pixels unless the name says otherwise.
"""

import math

import torch
from torch import Tensor

IOU_EPS = 1e-7


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


def complete_iou(predicted_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    """CIoU of boxes that broadcast against each other, (..., 4) to (...), in -1.5 .. 1.

    The trade-off weight alpha is a constant for the gradient. Heights and the union carry IOU_EPS, widths don't, as in
    the published recipe. Source: Zheng et al., "Distance-IoU Loss" (AAAI 2020), section "CIoU loss".
    """
    # planes (2, 4, ...): the two boxes, then left, top, right, bottom
    planes = torch.stack([box.movedim(-1, 0) for box in torch.broadcast_tensors(predicted_xyxy, target_xyxy)])
    low, high = planes[:, :2], planes[:, 2:]
    size, double_centre = high - low, high + low
    width, height = size[:, 0], size[:, 1] + IOU_EPS

    signed_overlap = high[0].minimum(high[1]) - low[0].maximum(low[1])
    overlap_width, overlap_height = signed_overlap.clamp(min=0)
    intersection = overlap_width * overlap_height
    area, other_area = width * height
    iou = intersection / (area + other_area - intersection + IOU_EPS)

    enclosing = size[0] + size[1] - signed_overlap
    enclosing_diagonal = enclosing.square().sum(dim=0) + IOU_EPS
    four_distance = (double_centre[0] - double_centre[1]).square().sum(dim=0)  # four times the square of the centres'

    angle, other_angle = torch.atan(width / height)
    aspect = 4 / math.pi**2 * (angle - other_angle).square()
    with torch.no_grad():
        alpha = aspect / (1 + IOU_EPS - iou + aspect)
    return iou - torch.add(aspect * alpha, four_distance / enclosing_diagonal, alpha=0.25)


def anchor_points(
    map_sizes: list[tuple[int, int]], strides: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cell centres of all levels in grid units (P, 2) as x, y, and each one's stride in pixels (P, 1).

    Row-major within a level, levels in the order of `strides`.
    """
    points, point_strides = [], []
    for size, stride in zip(map_sizes, strides, strict=True):
        y, x = (torch.arange(side, device=device, dtype=torch.float32) + 0.5 for side in size)
        points.append(torch.cartesian_prod(y, x).flip(1))
        # `len` would be a constant in exported programs
        point_strides.append(torch.full_like(points[-1][:, :1], float(stride)))
    return torch.cat(points), torch.cat(point_strides)
