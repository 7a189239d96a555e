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
    if len(scores) > IMAGES_AT_ONCE:
        parts = zip(boxes_xyxy.split(IMAGES_AT_ONCE), scores.split(IMAGES_AT_ONCE), strict=True)
        return [found for part in parts for found in suppress(*part, conf, iou, max_det, multi_label)]
    if multi_label and scores.shape[2] > 1:
        num_classes = scores.shape[2]
        candidate_scores, order = _sorted_candidates(scores.flatten(1), conf)
        labels, points = order % num_classes, order // num_classes
    else:
        best_scores, best_labels = scores.max(dim=2)
        candidate_scores, points = _sorted_candidates(best_scores, conf)
        labels = best_labels.gather(1, points)
    boxes = boxes_xyxy.gather(1, points.unsqueeze(-1).expand(-1, -1, 4)).float()
    return _suppress_sorted(boxes, candidate_scores.float(), labels, conf, iou, max_det)


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


def _sorted_candidates(scores: Tensor, conf: float) -> tuple[Tensor, Tensor]:
    most = int((scores > conf).sum(dim=1).max())
    values, order = scores.sort(dim=1, descending=True, stable=True)
    count = min(most, CANDIDATES)
    return values[:, :count], order[:, :count]


def _suppress_sorted(
    boxes: Tensor, scores: Tensor, labels: Tensor, conf: float, iou: float, max_det: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    num_images, num_candidates = scores.shape
    # One slot more than can be kept: what comes too late is written there and cut off at the end.
    kept_boxes = boxes.new_zeros(num_images, max_det + 1, 4)
    kept_scores = scores.new_zeros(num_images, max_det + 1)
    kept_labels = labels.new_full((num_images, max_det + 1), -1)
    kept = torch.zeros(num_images, 1, dtype=torch.int64, device=boxes.device)
    for start in range(0, num_candidates, BLOCK):
        block = slice(start, start + BLOCK)
        block_boxes, block_scores, block_labels = boxes[:, block], scores[:, block], labels[:, block]
        beaten = _overlaps(kept_boxes[:, :max_det], kept_labels[:, :max_det], block_boxes, block_labels, iou).any(dim=1)
        keep = keep_mask(block_boxes, (block_scores > conf) & ~beaten, block_labels, iou)
        slots = (kept + keep.cumsum(dim=1) - 1).clamp(max=max_det)
        slots = torch.where(keep, slots, max_det)
        kept_boxes.scatter_(1, slots.unsqueeze(-1).expand(-1, -1, 4), block_boxes)
        kept_scores.scatter_(1, slots, block_scores)
        kept_labels.scatter_(1, slots, block_labels)
        kept = (kept + keep.sum(dim=1, keepdim=True)).clamp(max=max_det)
        if bool((kept >= max_det).all()):
            break
    counts = kept.flatten().tolist()
    return [
        (kept_boxes[image, :count], kept_scores[image, :count], kept_labels[image, :count])
        for image, count in enumerate(counts)
    ]


def _overlaps(boxes: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, iou: float) -> Tensor:
    same_class = labels.unsqueeze(-1) == other_labels.unsqueeze(-2)
    return same_class & (pairwise_iou(boxes, others) > iou)
