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

CANDIDATES = 30_000  # of one image, by score
BLOCK = 256
KEEPS_ALL = 1.0  # an overlap that no box exceeds
IMAGES_AT_ONCE = 16  # on a CPU, whose caches are small; elsewhere all, which takes fewer launches
ROUNDS = 4  # between two reads whether the mask still changes; on an accelerator each read makes the host wait


def suppress_found(
    num_images: int,
    images: Tensor,
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou: float,
    max_det: int,
    reads_are_free: bool = True,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Detections of each image, on the CPU: boxes (n, 4) xyxy, scores (n,) descending, labels (n,) int64.

    The candidates are those of all images: which image (n,), boxes (n, 4) xyxy, scores (n,), labels (n,). One falls if
    its IoU with a kept one of its image and class is above `iou`. Of equal scores the first one counts more.

    From the device come the counts of candidates, answers of a few numbers in between, and the detections of all images
    in one copy. Where `reads_are_free`, as on a CPU, there are more answers, since few images are taken at a time; the
    result is the same.
    """
    order = scores.sort(descending=True, stable=True).indices
    order = order[images[order].sort(stable=True).indices]
    images = images[order]
    rows = torch.cat([part.float() for part in (boxes_xyxy, scores.unsqueeze(1), labels.unsqueeze(1))], dim=1)[order]
    firsts = torch.searchsorted(images, torch.arange(num_images + 1, device=images.device))  # bincount would wait
    positions = torch.arange(len(images), device=images.device) - firsts[images]
    counts_list = firsts.diff().tolist()
    at_once, rounds = (IMAGES_AT_ONCE, 1) if reads_are_free else (num_images, ROUNDS)
    tables, kept_counts = [], []
    for start in range(0, num_images, at_once):
        some = counts_list[start : start + at_once]
        most = min(max(some), CANDIDATES)
        mine = slice(first := sum(counts_list[:start]), first + sum(some))
        # Cells of a table with a row an image; what is beyond the most candidates goes to a last column, cut off.
        table = rows.new_full((len(some), most + 1, 6), -1.0)
        table[images[mine] - start, positions[mine].clamp(max=most)] = rows[mine]
        kept, kept_count = _suppress_sorted(table[:, :most], some, iou, max_det, rounds)
        tables.append(kept)
        kept_counts += kept_count
    found = torch.cat(tables)[:, : max(kept_counts, default=0)].cpu()
    return [
        (each[:count, :4], each[:count, 4].clone(), each[:count, 5].long())
        for each, count in zip(found, kept_counts, strict=True)
    ]


def _suppress_sorted(
    table: Tensor, totals: list[int], iou: float, max_det: int, rounds: int
) -> tuple[Tensor, list[int]]:
    """What is kept of rows (B, K, 6) sorted by score, of which `totals` are there: (B, D + 1, 6), and the counts.

    After so many `rounds` the device is asked whether the mask of a block still changes.
    """
    num_images, num_candidates, _ = table.shape
    # One slot more than can be kept: what comes too late is written there and cut off at the end.
    kept_rows = table.new_full((num_images, max_det + 1, 6), -1.0)
    kept = torch.zeros(num_images, 1, dtype=torch.int64, device=table.device)
    counts = [0] * num_images
    for start in range(0, num_candidates, BLOCK):
        rows = table[:, start : start + BLOCK]
        candidates = (rows[..., 5] >= 0) & ~_overlaps(kept_rows[:, : max(counts)], rows, iou).any(dim=1)
        overlaps = torch.triu(_overlaps(rows, rows, iou), diagonal=1)
        keep, before = candidates, None
        while before is None or not torch.equal(before, keep):
            for _ in range(rounds):
                before, keep = keep, candidates & ~(overlaps & keep.unsqueeze(-1)).any(dim=-2)
        slots = (kept + keep.cumsum(dim=1) - 1).clamp(max=max_det)
        slots = torch.where(keep, slots, max_det)
        kept_rows.scatter_(1, slots.unsqueeze(-1).expand(-1, -1, 6), rows)
        kept = (kept + keep.sum(dim=1, keepdim=True)).clamp(max=max_det)
        counts = kept.flatten().tolist()
        if all(count >= max_det or total <= start + BLOCK for count, total in zip(counts, totals, strict=True)):
            break
    return kept_rows, counts


def _overlaps(rows: Tensor, others: Tensor, iou: float) -> Tensor:
    """Which boxes of the same class overlap by more than `iou`, (B, n, m)."""
    same_class = rows[..., 5].unsqueeze(-1) == others[..., 5].unsqueeze(-2)
    return same_class & (pairwise_iou(rows[..., :4], others[..., :4]) > iou)
