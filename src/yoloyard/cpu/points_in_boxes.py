"""The sums of `TaskAlignedLoss` from those points alone that lie in a box: equal sums in a fraction of the time.

Which points these are is read from the device, so shapes depend on the data. On a CPU reading costs nothing; elsewhere
the host would wait.

Shapes: B batch, M boxes per image, C classes, L levels, h w cells of a level, R real boxes of all images, n pairs of a
box and a point in it, U points that lie in a box, F points that learn a box. A point's number counts the rows of all
levels' maps (B * h * w, K), one level after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from yoloyard.common.boxes import complete_iou
from yoloyard.losses.assign import EPS, TOP_K, alignment_of, widened
from yoloyard.losses.task_aligned import BINS, Sums, TaskAlignedLoss, boxes_of, distribution_loss

MAX_PAIRS = 2**22  # 32 MB for each number of a pair


class Pairs(NamedTuple):
    """Boxes and the points in them."""

    box: Tensor  # int64 (n,) row of the real boxes
    point: Tensor  # int64 (n,) number of the point


class Targets(NamedTuple):
    """Which of the points learn something, and what."""

    row: Tensor  # int64 (F,) row of the points that were looked at
    box: Tensor  # int64 (F,) row of the real boxes
    score: Tensor  # float32 (F,) that the point's class should reach


def use_points_in_boxes(criterion: TaskAlignedLoss) -> TaskAlignedLoss:
    """Let `criterion` look at points in boxes alone; returns it."""
    criterion.sums = partial(sums_of_points_in_boxes, criterion)  # type: ignore[method-assign]
    return criterion


def sums_of_points_in_boxes(criterion: TaskAlignedLoss, maps: list[Tensor], boxes_xyxy: Tensor, labels: Tensor) -> Sums:
    """What `criterion.sums` gives, up to rounding. All points are taken where pairs would need too much memory."""
    images, slots = (labels >= 0).nonzero(as_tuple=True)
    boxes, classes = boxes_xyxy[images, slots], labels[images, slots]
    pairs = pairs_inside(boxes, images, maps, criterion.strides)
    if pairs is None:
        return TaskAlignedLoss.sums(criterion, maps, boxes_xyxy, labels)
    sizes = (4 * BINS, criterion.num_classes)
    levels = [level.permute(0, 2, 3, 1).flatten(0, 2).split(sizes, 1) for level in maps]
    all_box_logits, all_class_logits = zip(*levels, strict=True)
    numbers, row_of_pair = distinct(pairs.point, maps)
    rows = by_level(numbers, maps)
    centres, strides = places(rows, maps, criterion.strides)
    bins = torch.arange(BINS, dtype=torch.float32, device=boxes.device)
    with torch.no_grad():
        _, predicted_grid = boxes_of(take(all_box_logits, rows), centres, bins)
        class_logits = take(all_class_logits, rows)
        unsound = 0 * predicted_grid.sum()  # not a number where one of these is not: no point of it is learned
    targets = assign_inside(pairs, row_of_pair, predicted_grid * strides, class_logits, boxes, classes)

    rows = by_level(numbers[targets.row], maps)
    centres, weights = centres[targets.row], targets.score
    log_distribution, predicted_grid = boxes_of(take(all_box_logits, rows), centres, bins)
    target_grid = boxes[targets.box] / strides[targets.row]
    box = ((1 - complete_iou(predicted_grid, target_grid)) * weights).sum() + unsound
    dfl = (distribution_loss(log_distribution, target_grid, centres) * weights).sum()
    cls = class_loss(all_class_logits, rows, classes[targets.box], weights, criterion.class_weights)
    return box, cls, dfl, weights.sum()


def pairs_inside(boxes_xyxy: Tensor, images: Tensor, maps: Sequence[Tensor], strides: Sequence[int]) -> Pairs | None:
    """All pairs of a box, (R, 4) pixels, of the image (R,) and a point strictly in it, small boxes widened.

    None if there are more than MAX_PAIRS, which would take more memory than all points do chunk by chunk.
    """
    low, high = boxes_xyxy.split(2, dim=-1)
    low, high = widened(low, high, high - low)
    ranges = []
    for level, stride in zip(maps, strides, strict=True):
        size = torch.tensor([level.shape[3], level.shape[2]], device=low.device)
        # A column or row more on each side, so that rounding loses none; what is outside goes below.
        first = (low / stride - 0.5).floor().long().clamp(min=0).minimum(size)
        last = ((high / stride - 0.5).ceil().long() + 1).clamp(min=0).minimum(size)
        ranges.append((first, (last - first).clamp(min=0)))
    if sum(int(extent.prod(dim=1).sum()) for _, extent in ranges) > MAX_PAIRS:
        return None
    parts, first_number = [], 0
    for level, stride, (first, extent) in zip(maps, strides, ranges, strict=True):
        batch, _, height, width = level.shape
        count = extent.prod(dim=1)
        box = torch.repeat_interleave(count)
        place = torch.arange(len(box), device=box.device) - (count.cumsum(0) - count)[box]
        columns = extent[:, 0][box]
        column, row = first[:, 0][box] + place % columns, first[:, 1][box] + place // columns
        centres = torch.stack((column, row), dim=1) * stride + stride / 2
        kept = ((centres > low[box]) & (centres < high[box])).all(dim=1).nonzero().flatten()
        number = first_number + (images[box] * height + row) * width + column
        parts.append((box[kept], number[kept]))
        first_number += batch * height * width
    return Pairs(*(torch.cat(column) for column in zip(*parts, strict=True)))


def distinct(numbers: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The points (U,) that are among `numbers` (n,), ascending, and which of them each of these is, (n,)."""
    place = torch.zeros(sum(_points_of(maps)), dtype=torch.int64, device=numbers.device).index_fill(0, numbers, 1)
    return place.nonzero().flatten(), (place.cumsum(0) - 1)[numbers]


def by_level(numbers: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """Ascending numbers of points (U,) as rows of each level's (B * h * w, K)."""
    ends = torch.tensor(_points_of(maps), device=numbers.device).cumsum(0)
    counts = torch.searchsorted(numbers, ends).diff(prepend=ends.new_zeros(1)).tolist()
    starts = [0, *ends[:-1].tolist()]
    return [part - start for part, start in zip(numbers.split(counts), starts, strict=True)]


def _points_of(maps: Sequence[Tensor]) -> list[int]:
    return [level.shape[0] * level.shape[2] * level.shape[3] for level in maps]


def places(rows: Sequence[Tensor], maps: Sequence[Tensor], strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Centres (U, 2), x and y in cells, and strides (U, 1) in pixels, of the points with these `rows` of each level."""
    centres, point_strides = [], []
    for part, level, stride in zip(rows, maps, strides, strict=True):
        height, width = level.shape[2:]
        cell = part % (height * width)
        centres.append(torch.stack((cell % width, cell // width), dim=1) + 0.5)
        point_strides.append(torch.full((len(part), 1), float(stride), device=part.device))
    return torch.cat(centres), torch.cat(point_strides)


def take(levels: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """These `rows` of the levels' (B * h * w, K), as float32 (U, K)."""
    return torch.cat([level.index_select(0, part) for level, part in zip(levels, rows, strict=True)]).float()


@torch.no_grad()
def assign_inside(
    pairs: Pairs, row_of_pair: Tensor, predicted_xyxy: Tensor, class_logits: Tensor, boxes_xyxy: Tensor, labels: Tensor
) -> Targets:
    """What `assign` gives, for the points in boxes; a point whose target is zero may be left out.

    `row_of_pair` (n,) is the pair's row of `predicted_xyxy` (U, 4) pixels and `class_logits` (U, C); `boxes_xyxy`
    (R, 4) pixels, `labels` (R,).
    """
    num_points, num_boxes = len(predicted_xyxy), len(boxes_xyxy)
    overlap, alignment = _measure(pairs.box, row_of_pair, predicted_xyxy, class_logits, boxes_xyxy, labels)
    selected = _best_of_each_box(alignment, pairs.box, num_boxes)

    rows, selectors = row_of_pair[selected], pairs.box[selected]
    selections = torch.bincount(rows, minlength=num_points)
    box_of_point = torch.zeros(num_points, dtype=torch.int64, device=rows.device).index_put((rows,), selectors)
    # A point that several boxes select learns the one that it overlaps most, whether that one selected it or not.
    best = overlap.new_zeros(num_points).scatter_reduce(0, row_of_pair, overlap, "amax")
    is_best = (overlap == best[row_of_pair]) & (selections[row_of_pair] > 1)
    first_best = torch.full_like(box_of_point, num_boxes)
    first_best = first_best.scatter_reduce(0, row_of_pair[is_best], pairs.box[is_best], "amin")
    row = selections.nonzero().flatten()
    box = torch.where(selections > 1, first_best, box_of_point)[row]

    overlap, alignment = _measure(box, row, predicted_xyxy, class_logits, boxes_xyxy, labels)
    none = overlap.new_zeros(num_boxes)
    top_alignment = none.scatter_reduce(0, box, alignment, "amax")[box]
    top_overlap = none.scatter_reduce(0, box, overlap, "amax")[box]
    return Targets(row, box, alignment * top_overlap / (top_alignment + EPS))


def _measure(
    box: Tensor, row: Tensor, predicted_xyxy: Tensor, class_logits: Tensor, boxes_xyxy: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Overlap (n,) and alignment (n,) of boxes and points in these rows, (n,) each."""
    overlap = complete_iou(boxes_xyxy[box], predicted_xyxy[row]).clamp(min=0)
    return overlap, alignment_of(class_logits[row, labels[box]].sigmoid().sqrt(), overlap)


def _best_of_each_box(alignment: Tensor, box: Tensor, num_boxes: int) -> Tensor:
    """The pairs (k,) of the TOP_K best alignments above zero of each box."""
    order = alignment.argsort(descending=True, stable=True)
    order = order[: int((alignment > 0).sum())]
    order = order[box[order].argsort(stable=True)]
    counts = torch.bincount(box[order], minlength=num_boxes)
    rank = torch.arange(len(order), device=box.device) - (counts.cumsum(0) - counts)[box[order]]
    return order[rank < TOP_K]


def class_loss(
    levels: Sequence[Tensor], rows: Sequence[Tensor], labels: Tensor, targets: Tensor, weights: Tensor | None
) -> Tensor:
    """Binary cross-entropy of all logits, levels of (B * h * w, C), summed; see `_ClassLoss` for the rest."""
    counts = [len(part) for part in rows]
    parts = zip(levels, rows, labels.split(counts), targets.split(counts), strict=True)
    return torch.stack([_ClassLoss.apply(*part, weights) for part in parts]).sum()


class _ClassLoss(torch.autograd.Function):
    """Binary cross-entropy of logits (N, C), summed; in row `rows` (F,) the class `labels` (F,) has `targets` (F,).

    All else has the target zero, and each row stands there once at most. `weights` (C,) multiply the classes' shares.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, rows: Tensor, labels: Tensor, targets: Tensor, weights: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(logits, rows, labels, targets, weights)
        x = logits.float()
        # softplus(x) = max(x, 0) + log(1 + z), z = exp(-|x|). Torch's log1p takes six times as long as its log: of
        # u = 1 + z that is taken, and what u lost by rounding is added, log(1 + z) = log(u) + (z - (u - 1)) / u.
        z = x.abs().neg_().exp_()
        u = z + 1
        lost = z.sub_(u).add_(1).div_(u)
        none_true = u.log_().add_(lost).add_(x.clamp(min=0)).sum(dim=0)
        own = x[rows, labels] * targets
        if weights is None:
            return none_true.sum() - own.sum()
        return (none_true * weights).sum() - (own * weights[labels]).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, rows, labels, targets, weights = ctx.saved_tensors
        gradient = logits.float().sigmoid()
        gradient[rows, labels] -= targets
        if weights is not None:
            gradient *= weights
        return gradient.mul_(gradients[0]).to(logits.dtype), None, None, None, None
