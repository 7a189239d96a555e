"""New anchors for a YOLOv5 head whose own ones don't fit the boxes of the data.

Shapes: n boxes, k anchors of all levels; all sizes are (width, height) in pixels of the training size.
Source: the automatic anchors of YOLOv5 7.0: k-means, then evolution.
"""

import logging

import numpy as np
import torch

from yoloyard.common.image_size import ImageSize, shape_of
from yoloyard.data.index.index import Index
from yoloyard.data.index.tiled import input_boxes
from yoloyard.models.heads import Head

log = logging.getLogger(__name__)

ENOUGH_RECALL = 0.98
MIN_SIDE_PIXELS = 2.0  # boxes with both sides below it make no anchors
MAX_BOXES = 100_000  # that new anchors are made from
RESTARTS, GENERATIONS = 30, 1000  # of k-means, and of the evolution
SIZES_PIXELS = (("all", 0.0, np.inf), ("small", 0.0, 32.0), ("medium", 32.0, 96.0), ("large", 96.0, np.inf))  # COCO's


def fit_anchors(head: Head, index: Index, imgsz: ImageSize, anchor_t: float, seed: int) -> None:
    """Give the head new anchors where fewer than 98 % of the boxes are within `anchor_t` times one; log the shares."""
    random = np.random.default_rng(seed)
    trained = ~np.array(index.ignore)
    boxes_xyxy = input_boxes(index, imgsz)[trained].astype(float)
    boxes = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    if not len(boxes):
        return
    # As the zoom of the augmentation will vary them.
    zooms = np.repeat(random.uniform(0.9, 1.1, len(index)), np.diff(index.offsets))
    varied = boxes * zooms[trained, None]
    anchors = head.get_buffer("anchors")
    old = anchors.flatten(0, 1).double().cpu().numpy()
    before = recall_by_size(varied, old, anchor_t)
    if before["all"] > ENOUGH_RECALL:
        log.info(f"anchors fit: {_line(before)} of the boxes are in their reach")
        return
    log.info(f"anchors fit only {before['all']:.1%} of the boxes: looking for better ones (--no-autoanchor: keep)")
    new = make_anchors(boxes, len(old), np.array(shape_of(imgsz)[::-1]), anchor_t, random)
    after = recall_by_size(varied, new, anchor_t)
    log.info(f"  old anchors: {_line(before)}")
    log.info(f"  new anchors: {_line(after)}")
    if after["all"] <= before["all"]:
        log.info("  the new ones are no better: the old ones stay")
        return
    levels = new.reshape(anchors.shape)
    for stride, level in zip(head.strides, levels, strict=True):
        log.info(f"  stride {stride}: " + ", ".join(f"{width:.0f} x {height:.0f}" for width, height in level))
    anchors.copy_(torch.from_numpy(levels))


def recall_by_size(boxes: np.ndarray, anchors: np.ndarray, anchor_t: float) -> dict[str, float]:
    """Share of the boxes (n, 2) that fit any of the anchors (k, 2), by the root of their area; NaN without boxes."""
    fits = _closeness(boxes, anchors) > 1 / anchor_t
    size = np.sqrt(boxes.prod(axis=1))
    of_size = {name: fits[(size >= low) & (size < high)] for name, low, high in SIZES_PIXELS}
    return {name: float(chosen.mean()) if len(chosen) else float("nan") for name, chosen in of_size.items()}


def make_anchors(
    boxes: np.ndarray, count: int, largest: np.ndarray | int, anchor_t: float, random: np.random.Generator
) -> np.ndarray:
    """`count` anchors for boxes (n, 2), by k-means and evolution, smallest area first.

    `largest` (2,): the training size. Where boxes are too few to choose from, the first anchors are any up to it.
    """
    boxes = boxes[(boxes >= MIN_SIDE_PIXELS).any(axis=1)].astype(np.float32)
    if len(boxes) > MAX_BOXES:
        boxes = random.choice(boxes, MAX_BOXES, replace=False)
    anchors = _k_means(boxes, count, random)
    if len(anchors) < count:  # too few different boxes
        anchors = (np.sort(random.random(2 * count)).reshape(count, 2) * largest).astype(np.float32)
    best = _fitness(boxes, anchors, anchor_t)
    for _ in range(GENERATIONS):
        mask, size = random.random(anchors.shape) < 0.9, random.random()
        factors = (mask * size * random.standard_normal(anchors.shape) * 0.1 + 1).clip(0.3, 3.0)
        candidate = (anchors * factors).clip(min=MIN_SIDE_PIXELS).astype(np.float32)
        fitness = _fitness(boxes, candidate, anchor_t)
        if fitness > best:
            anchors, best = candidate, fitness
    return anchors[np.argsort(anchors.prod(axis=1))]


def _closeness(boxes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Float (n,), 0 .. 1: of each box and its best anchor, the smaller ratio of their sides."""
    best = np.zeros(len(boxes), dtype=boxes.dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        for anchor in anchors:
            ratio = boxes / anchor
            np.fmax(best, np.minimum(ratio, 1 / ratio).min(axis=1), out=best)
    return best


def _fitness(boxes: np.ndarray, anchors: np.ndarray, anchor_t: float) -> float:
    closeness = _closeness(boxes, anchors)
    return float(np.where(closeness > 1 / anchor_t, closeness, 0).mean())


def _k_means(boxes: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """The best of some runs of Lloyd's algorithm on boxes scaled to unit deviation; fewer centres for few boxes."""
    deviation = boxes.std(axis=0) if len(boxes) >= count else np.zeros(2)
    if not deviation.all():
        return boxes[:0]
    points = boxes / deviation
    best, best_distance = points[:0], np.inf
    for _ in range(RESTARTS):
        centres, distance = points[random.choice(len(points), count, replace=False)], np.inf
        while True:
            distances = np.stack([np.linalg.norm(points - centre, axis=1) for centre in centres])  # (k, n)
            nearest, previous, distance = distances.argmin(axis=0), distance, distances.min(axis=0).mean()
            if abs(previous - distance) <= 1e-5:
                break
            centres = np.stack([points[nearest == each].mean(axis=0) for each in np.unique(nearest)])
        if distance < best_distance:
            best, best_distance = centres, distance
    return best * deviation


def _line(row: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in row.items() if not np.isnan(share))
