"""The sums of `TaskAlignedLoss` from those points alone that lie in a box: equal sums in a fraction of the time.

Which points these are is read from the device, so shapes depend on the data. On a CPU reading costs nothing; elsewhere
the host would wait.

Shapes: B batch, M boxes per image, C classes, L levels, h w cells of a level, R real boxes of all images, n pairs of a
box and a point in it, U points that lie in a box, level by level, F of them that learn a box.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from yoloyard.common.boxes import complete_iou
from yoloyard.losses import Criterion
from yoloyard.losses.assign import EPS, alignment_of, minimum_side_of, widened
from yoloyard.losses.task_aligned import Sums, TaskAlignedLoss, boxes_of, side_loss, task_aligned_parts

AnyCriterion = TypeVar("AnyCriterion", bound=Criterion)
MAX_PAIRS = 2**22  # 32 MB for each number of a pair


class Inside(NamedTuple):
    """The pairs of a box and a point in it, and the points."""

    box: Tensor  # int64 (n,) row of the real boxes
    point: Tensor  # int64 (n,) which of the U points
    rows: list[Tensor]  # int64, of each level: the points as rows of its map (B * h * w, K), ascending
    centres: Tensor  # (U, 2) x and y in cells
    strides: Tensor  # (U, 1) pixels


def use_points_in_boxes(criterion: AnyCriterion) -> AnyCriterion:
    """Let `criterion`, or what it is made of, look at points in boxes alone where it can; returns it."""
    for part in task_aligned_parts(criterion):
        part.sums = partial(sums_of_points_in_boxes, part)  # type: ignore[method-assign]
    return criterion


def sums_of_points_in_boxes(criterion: TaskAlignedLoss, maps: list[Tensor], boxes_xyxy: Tensor, labels: Tensor) -> Sums:
    """What `criterion.sums` gives, up to rounding. All points are taken where pairs would need too much memory."""
    images, slots = (labels >= 0).nonzero(as_tuple=True)
    boxes, classes = boxes_xyxy[images, slots], labels[images, slots]
    inside = points_inside(boxes, images, maps, criterion.strides)
    if inside is None:
        return TaskAlignedLoss.sums(criterion, maps, boxes_xyxy, labels)
    sizes = (4 * criterion.bins, criterion.num_classes)
    levels = [level.permute(0, 2, 3, 1).flatten(0, 2).split(sizes, 1) for level in maps]
    all_box_logits, all_class_logits = zip(*levels, strict=True)
    bins = torch.arange(criterion.bins, dtype=torch.float32, device=boxes.device)
    with torch.no_grad():
        _, predicted_grid = boxes_of(_take(all_box_logits, inside.rows), inside.centres, bins)
        class_logits = _take(all_class_logits, inside.rows)
        unsound = 0 * predicted_grid.sum()  # not a number where one of these is not: no point of it is learned
    predicted_xyxy, selection = predicted_grid * inside.strides, (criterion.top_k, criterion.best_only)
    point, box, weights = assign_inside(inside, predicted_xyxy, class_logits, boxes, classes, *selection)

    learns = torch.zeros(len(inside.centres), dtype=torch.bool, device=boxes.device).index_fill(0, point, True)
    rows = [part[kept] for part, kept in zip(inside.rows, learns.split(list(map(len, inside.rows))), strict=True)]
    centres = inside.centres[point]
    log_distribution, predicted_grid = boxes_of(_take(all_box_logits, rows), centres, bins)
    strides = inside.strides[point]
    target_grid = boxes[box] / strides
    box_sum = ((1 - complete_iou(predicted_grid, target_grid)) * weights).sum() + unsound
    scale = criterion.side_scale(maps, strides)
    sides = (side_loss(log_distribution, predicted_grid, target_grid, centres, scale) * weights).sum()
    counts = list(map(len, rows))
    parts = zip(all_class_logits, rows, classes[box].split(counts), weights.split(counts), strict=True)
    cls = torch.stack([_ClassLoss.apply(*part, criterion.class_weights) for part in parts]).sum()
    return box_sum, cls, sides, weights.sum()


def points_inside(boxes_xyxy: Tensor, images: Tensor, maps: Sequence[Tensor], strides: Sequence[int]) -> Inside | None:
    """The points strictly in a box, (R, 4) pixels, of the image (R,), small boxes widened.

    None if there are more than MAX_PAIRS, which would take more memory than all points do chunk by chunk.
    """
    low, high = boxes_xyxy.split(2, dim=-1)
    low, high = widened(low, high, high - low, minimum_side_of(strides))
    ranges = []
    for level, stride in zip(maps, strides, strict=True):
        size = torch.tensor([level.shape[3], level.shape[2]], device=low.device)
        # A column or row more on each side, so that rounding loses none; what is outside goes below.
        first = (low / stride - 0.5).floor().long().clamp(min=0).minimum(size)
        last = ((high / stride - 0.5).ceil().long() + 1).clamp(min=0).minimum(size)
        ranges.append((first, (last - first).clamp(min=0)))
    if sum(int(extent.prod(dim=1).sum()) for _, extent in ranges) > MAX_PAIRS:
        return None
    parts, rows, num_points = [], [], 0
    for level, stride, (first, extent) in zip(maps, strides, ranges, strict=True):
        batch, _, height, width = level.shape
        count = extent.prod(dim=1)
        box = torch.repeat_interleave(count)
        place = torch.arange(len(box), device=box.device) - (count.cumsum(0) - count)[box]
        columns = extent[:, 0][box]
        cell = first[box] + torch.stack((place % columns, place // columns), dim=1)  # column and row
        centres = cell * stride + stride / 2
        kept = ((centres > low[box]) & (centres < high[box])).all(dim=1).nonzero().flatten()
        box = box[kept]
        row_of_pair = (images[box] * height + cell[kept, 1]) * width + cell[kept, 0]
        in_box = torch.zeros(batch * height * width, dtype=torch.int64, device=box.device).index_fill(0, row_of_pair, 1)
        row = in_box.nonzero().flatten()
        centres = torch.stack((row % width, row // width % height), dim=1) + 0.5
        parts.append(
            (box, (in_box.cumsum(0) - 1)[row_of_pair] + num_points, centres, torch.full_like(centres[:, :1], stride))
        )
        rows.append(row)
        num_points += len(row)
    boxes, points, all_centres, all_strides = (torch.cat(column) for column in zip(*parts, strict=True))
    return Inside(boxes, points, rows, all_centres, all_strides)


def _take(levels: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """These `rows` of the levels' (B * h * w, K), as float32 (U, K)."""
    return torch.cat([level.index_select(0, part) for level, part in zip(levels, rows, strict=True)]).float()


@torch.no_grad()
def assign_inside(
    inside: Inside,
    predicted_xyxy: Tensor,
    class_logits: Tensor,
    boxes_xyxy: Tensor,
    labels: Tensor,
    top_k: int,
    best_only: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `assign` gives, for the points in boxes; a point whose target is zero may be left out.

    Of `predicted_xyxy` (U, 4) pixels, `class_logits` (U, C), `boxes_xyxy` (R, 4) pixels and `labels` (R,): which of the
    points learn something (F,), ascending, which boxes (F,) and the scores that their classes should reach (F,).
    """
    num_points, num_boxes = len(predicted_xyxy), len(boxes_xyxy)

    def measure(box: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        # Not a number would be no point's best. The loss is none then anyway, see `unsound`.
        overlap = complete_iou(boxes_xyxy[box], predicted_xyxy[point]).clamp(min=0).nan_to_num()
        return overlap, alignment_of(class_logits[point, labels[box]].sigmoid().sqrt(), overlap)

    overlap, alignment = measure(inside.box, inside.point)
    # The pairs of the `top_k` best alignments above zero of each box.
    order = alignment.argsort(descending=True, stable=True)[: int((alignment > 0).sum())]
    order = order[inside.box[order].argsort(stable=True)]
    counts = torch.bincount(inside.box[order], minlength=num_boxes)
    rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[inside.box[order]]
    selected = order[rank < top_k]

    points, selectors = inside.point[selected], inside.box[selected]
    selections = torch.bincount(points, minlength=num_points)
    box_of_point = torch.zeros(num_points, dtype=torch.int64, device=points.device).index_put((points,), selectors)
    # A point that several boxes select learns the one that it overlaps most, whether that one selected it or not.
    best = overlap.new_zeros(num_points).scatter_reduce(0, inside.point, overlap, "amax")
    is_best = (overlap == best[inside.point]) & (selections[inside.point] > 1)
    first_best = torch.full_like(box_of_point, num_boxes)
    first_best = first_best.scatter_reduce(0, inside.point[is_best], inside.box[is_best], "amin")
    point = selections.nonzero().flatten()
    box = torch.where(selections > 1, first_best, box_of_point)[point]

    overlap, alignment = measure(box, point)
    none = overlap.new_zeros(num_boxes)
    top_alignment = none.scatter_reduce(0, box, alignment, "amax")[box]
    if best_only:  # of equal points the first, as in `assign`
        best_places = (alignment == top_alignment).nonzero().flatten()
        first = torch.full((num_boxes,), len(box), device=box.device)
        first = first.scatter_reduce(0, box[best_places], best_places, "amin")
        kept = first[box] == torch.arange(len(box), device=box.device)
        point, box, overlap, alignment, top_alignment = (
            each[kept] for each in (point, box, overlap, alignment, top_alignment)
        )
    top_overlap = none.scatter_reduce(0, box, overlap, "amax")[box]
    return point, box, alignment * top_overlap / (top_alignment + EPS)


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
