"""Exact greedy non-maximum suppression in plain torch: batched, few launches, no compiled extension.

Shapes: B batch, P anchor points, C classes, K candidates above the score threshold, k of them in a block, D kept.

Boxes are sorted by score; box j falls iff some *kept* box i before it overlaps it by more than the threshold. Starting
from "all kept" and applying this rule to all boxes at once, the i-th box is final after i rounds at the latest, and in
practice the mask stops changing after a few. The fixpoint is exactly the greedy result. Candidates are taken in blocks,
so that memory is bounded and the work ends as soon as every image has its most detections.
"""

import torch
from torch import Tensor

from yoloyard.boxes import pairwise_iou

CANDIDATES = 30_000  # of one image, by score
BLOCK = 256
IMAGES_AT_ONCE = 16  # bounds the memory of large validation batches


def suppress(
    boxes_xyxy: Tensor, scores: Tensor, conf: float, iou: float, max_det: int, multi_label: bool
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Detections of each image: boxes (n, 4) xyxy, scores (n,) descending, labels (n,) int64.

    `boxes_xyxy` (B, P, 4), `scores` (B, P, C) in 0..1. A score must be above `conf`; a box falls if its IoU with a
    kept one of its class is above `iou`. With `multi_label` a point may give one detection for each class, else only
    one for its best class.
    """
    if multi_label and scores.shape[2] > 1:
        images, points, labels = (scores > conf).nonzero(as_tuple=True)
        values = scores[images, points, labels]
    else:
        best_scores, best_labels = scores.max(dim=2)
        images, points = (best_scores > conf).nonzero(as_tuple=True)
        values, labels = best_scores[images, points], best_labels[images, points]
    return suppress_found(len(scores), images, boxes_xyxy[images, points], values, labels, iou, max_det)


def suppress_found(
    num_images: int, images: Tensor, boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, iou: float, max_det: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The same for n candidates of all images: which image (n,), boxes (n, 4), scores (n,), labels (n,).

    Of equal scores the first one counts more.
    """
    order = scores.sort(descending=True, stable=True).indices
    order = order[images[order].sort(stable=True).indices]
    images, boxes, values, labels = images[order], boxes_xyxy[order].float(), scores[order].float(), labels[order]
    counts = torch.bincount(images, minlength=num_images)
    places = torch.arange(len(images), device=images.device) - (counts.cumsum(0) - counts)[images]
    counts_list = counts.tolist()
    detections = []
    for start in range(0, num_images, IMAGES_AT_ONCE):
        some = counts_list[start : start + IMAGES_AT_ONCE]
        most = min(max(some), CANDIDATES)
        first = sum(counts_list[:start])
        mine = slice(first, first + sum(some))
        # Cells of a table with a row an image; what is beyond the most candidates goes to a last column, cut off.
        row, column = images[mine] - start, places[mine].clamp(max=most)
        padded_boxes = boxes.new_zeros(len(some), most + 1, 4)
        padded_scores = values.new_full((len(some), most + 1), -1.0)
        padded_labels = labels.new_full((len(some), most + 1), -1)
        padded_boxes[row, column], padded_scores[row, column] = boxes[mine], values[mine]
        padded_labels[row, column] = labels[mine]
        table = padded_boxes[:, :most], padded_scores[:, :most], padded_labels[:, :most]
        detections += _suppress_sorted(*table, some, iou, max_det)
    return detections


def keep_mask(boxes_xyxy: Tensor, candidates: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Which candidates greedy suppression keeps, as bool (..., k).

    `boxes_xyxy` (..., k, 4) sorted by descending score, `candidates` bool (..., k), `labels` (..., k): only boxes of
    one class suppress each other.
    """
    overlaps = torch.triu(_overlaps(boxes_xyxy, labels, boxes_xyxy, labels, iou), diagonal=1)
    keep = candidates
    while True:
        updated = candidates & ~(overlaps & keep.unsqueeze(-1)).any(dim=-2)
        if torch.equal(updated, keep):
            return keep
        keep = updated


def _suppress_sorted(
    boxes: Tensor, scores: Tensor, labels: Tensor, totals: list[int], iou: float, max_det: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    num_images, num_candidates = scores.shape
    # One slot more than can be kept: what comes too late is written there and cut off at the end.
    kept_boxes = boxes.new_zeros(num_images, max_det + 1, 4)
    kept_scores = scores.new_zeros(num_images, max_det + 1)
    kept_labels = labels.new_full((num_images, max_det + 1), -1)
    kept = torch.zeros(num_images, 1, dtype=torch.int64, device=boxes.device)
    counts = [0] * num_images
    for start in range(0, num_candidates, BLOCK):
        block = slice(start, start + BLOCK)
        block_boxes, block_scores, block_labels = boxes[:, block], scores[:, block], labels[:, block]
        most = max(counts)
        beaten = _overlaps(kept_boxes[:, :most], kept_labels[:, :most], block_boxes, block_labels, iou).any(dim=1)
        keep = keep_mask(block_boxes, (block_labels >= 0) & ~beaten, block_labels, iou)
        slots = (kept + keep.cumsum(dim=1) - 1).clamp(max=max_det)
        slots = torch.where(keep, slots, max_det)
        kept_boxes.scatter_(1, slots.unsqueeze(-1).expand(-1, -1, 4), block_boxes)
        kept_scores.scatter_(1, slots, block_scores)
        kept_labels.scatter_(1, slots, block_labels)
        kept = (kept + keep.sum(dim=1, keepdim=True)).clamp(max=max_det)
        counts = kept.flatten().tolist()
        if all(count >= max_det or total <= block.stop for count, total in zip(counts, totals, strict=True)):
            break
    return [
        (kept_boxes[image, :count], kept_scores[image, :count], kept_labels[image, :count])
        for image, count in enumerate(counts)
    ]


def _overlaps(boxes: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, iou: float) -> Tensor:
    same_class = labels.unsqueeze(-1) == other_labels.unsqueeze(-2)
    return same_class & (pairwise_iou(boxes, others) > iou)
