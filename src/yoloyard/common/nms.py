"""Exact greedy non-maximum suppression in plain torch: batched, few launches, no compiled extension.

Shapes: B batch, K candidates above the score threshold, k of them in a block, D the most detections. A row (6,) is a
box, its score and its label, float32, which holds labels up to 2^24 exactly.

Boxes are sorted by score; box j falls iff some *kept* box i before it overlaps it by more than the threshold. Starting
from "all kept" and applying this rule to all boxes at once, the i-th box is final after i rounds at the latest, and in
practice the mask stops changing after a few. The fixpoint is exactly the greedy result. Candidates are taken in blocks,
so that memory is bounded and the work ends as soon as every image has its most detections.
"""

import torch
from torch import Tensor

from yoloyard.common.boxes import pairwise_iou
from yoloyard.common.device import has_cpu_paths

MAX_CANDIDATES = 30_000  # of one image, the best
BLOCK_CANDIDATES = 256
CPU_PART_IMAGES = 16  # suit the caches of a CPU; other devices take all images, with fewer launches
ROUNDS_PER_CHECK = 4  # of the fixpoint; each check whether the mask still changes waits for the device


def suppress_found(
    num_images: int, images: Tensor, boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, iou: float, max_det: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Detections of each image, on the CPU: boxes (n, 4) xyxy, scores (n,) descending, labels (n,) int64.

    The K candidates come from all images: which image (K,), boxes (K, 4), scores (K,), labels (K,). A box falls if its
    IoU with a kept one of its image and class is above `iou`. Of equal scores the first one counts more. The device
    sends the counts of candidates, a few numbers in between, and the detections of all images in one copy.
    """
    order = scores.sort(descending=True, stable=True).indices
    order = order[images[order].sort(stable=True).indices]
    images = images[order]
    rows = torch.cat([part.float() for part in (boxes_xyxy, scores.unsqueeze(1), labels.unsqueeze(1))], dim=1)[order]
    firsts = torch.searchsorted(images, torch.arange(num_images + 1, device=images.device))  # bincount would wait
    places = torch.arange(len(images), device=images.device) - firsts[images]
    counts_list = firsts.diff().tolist()
    at_once = CPU_PART_IMAGES if has_cpu_paths(images.device) else num_images
    tables, kept_counts = [], []
    for start in range(0, num_images, at_once):
        some = counts_list[start : start + at_once]
        most = min(max(some), MAX_CANDIDATES)
        first = sum(counts_list[:start])
        mine = slice(first, first + sum(some))
        # A table with a row for each image; candidates beyond `most` go to a last column, which is cut off.
        table = rows.new_full((len(some), most + 1, 6), -1.0)
        table[images[mine] - start, places[mine].clamp(max=most)] = rows[mine]
        kept, kept_count = _suppress_sorted(table[:, :most], some, iou, max_det)
        tables.append(kept)
        kept_counts += kept_count
    found = torch.cat(tables)[:, : max(kept_counts, default=0)].cpu()
    return [
        (each[:count, :4], each[:count, 4].clone(), each[:count, 5].long())
        for each, count in zip(found, kept_counts, strict=True)
    ]


def keep_mask(boxes_xyxy: Tensor, candidates: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Which candidates greedy suppression keeps, as bool (..., k).

    `boxes_xyxy` (..., k, 4) sorted by descending score, `candidates` bool (..., k), `labels` (..., k): only boxes of
    one class suppress each other.
    """
    overlaps = torch.triu(_overlaps(boxes_xyxy, labels, boxes_xyxy, labels, iou), diagonal=1)
    keep = before = candidates
    while True:
        for _ in range(1 if has_cpu_paths(keep.device) else ROUNDS_PER_CHECK):
            before, keep = keep, candidates & ~(overlaps & keep.unsqueeze(-1)).any(dim=-2)
        if torch.equal(before, keep):
            return keep


def _suppress_sorted(table: Tensor, totals: list[int], iou: float, max_det: int) -> tuple[Tensor, list[int]]:
    """The kept ones of rows (B, K, 6), sorted by score, `totals` in each image: (B, D + 1, 6), and their counts."""
    num_images, num_candidates, _ = table.shape
    # One slot more than can be kept: boxes that come too late are written there and cut off at the end.
    kept_rows = table.new_full((num_images, max_det + 1, 6), -1.0)
    kept = torch.zeros(num_images, 1, dtype=torch.int64, device=table.device)
    counts = [0] * num_images
    for start in range(0, num_candidates, BLOCK_CANDIDATES):
        end = start + BLOCK_CANDIDATES
        rows = table[:, start:end]
        boxes, labels = rows[..., :4], rows[..., 5]
        earlier = kept_rows[:, : max(counts)]
        beaten = _overlaps(earlier[..., :4], earlier[..., 5], boxes, labels, iou).any(dim=1)
        keep = keep_mask(boxes, (labels >= 0) & ~beaten, labels, iou)
        slots = (kept + keep.cumsum(dim=1) - 1).clamp(max=max_det)
        slots = torch.where(keep, slots, max_det)
        kept_rows.scatter_(1, slots.unsqueeze(-1).expand(-1, -1, 6), rows)
        kept = (kept + keep.sum(dim=1, keepdim=True)).clamp(max=max_det)
        counts = kept.flatten().tolist()
        if all(count >= max_det or total <= end for count, total in zip(counts, totals, strict=True)):
            break
    return kept_rows, counts


def _overlaps(boxes: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, iou: float) -> Tensor:
    same_class = labels.unsqueeze(-1) == other_labels.unsqueeze(-2)
    return same_class & (pairwise_iou(boxes, others) > iou)
