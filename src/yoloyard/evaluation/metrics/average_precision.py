"""COCO's average precision over whole data sets at once: matching and curves as arrays, without an object a box.

Shapes: N found boxes of all images, M true boxes, R pairs that overlap, C classes. The figures are those of
pycocotools; tests compare. Source: Lin et al., "Microsoft COCO" (2014), and the evaluation's public description.
"""

import itertools

import numpy as np

from yoloyard.evaluation.metrics.matching import Found, Pairs, Truth, match_greedily

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of overlap
RECALL_LEVELS = np.linspace(0, 1, 101)
AREA_LIMITS = (0, 32**2, 96**2, 1e10)  # a box on a limit is in both sizes
SIZES = ((AREA_LIMITS[0], AREA_LIMITS[-1]), *itertools.pairwise(AREA_LIMITS))  # all, small, medium, large


def precision_table(found: Found, truth: Truth, pairs: Pairs, num_classes: int, max_det: int) -> np.ndarray:
    """Interpolated precision, float64 (10 thresholds, 101 recall levels, C, 4 sizes); nan without boxes of a class.

    `pairs` are all that overlap by the lowest threshold. The best `max_det` boxes of a class in an image count.
    A found box takes a true one that counts, if it can. A box that takes an ignored one instead (a crowd, or a box of
    another size), or that takes none and is of another size, counts for nothing.
    """
    table = np.full((len(THRESHOLDS), len(RECALL_LEVELS), num_classes, len(SIZES)), np.nan)
    counted = _ranks(found, num_classes) < max_det
    order = np.lexsort((-found.scores, found.labels))  # stable: equal scores as they come
    order = order[counted[order]]
    labels = found.labels[order]
    starts = np.searchsorted(labels, np.arange(num_classes + 1))
    pairs = pairs.where(counted[pairs.found] & (found.labels[pairs.found] == truth.labels[pairs.truth]))
    # Matching is about the boxes in pairs alone; `rows` are their numbers.
    rows, own = np.unique(pairs.found, return_inverse=True)
    found_area, true_area = found.areas, truth.areas
    # A crowd may be taken any number of times: each pair gets a true box of its own.
    is_crowd = truth.ignore[pairs.truth]
    wanted = np.where(is_crowd, len(truth.labels) + np.arange(len(own)), pairs.truth)
    num_wanted = len(truth.labels) + len(own)
    for size, (low, high) in enumerate(SIZES):
        ignored = truth.ignore | (true_area < low) | (true_area > high)
        boxes = np.bincount(truth.labels[~ignored], minlength=num_classes)
        outside = (found_area < low) | (found_area > high)
        for level, threshold in enumerate(THRESHOLDS):
            near = pairs.overlaps >= min(threshold, 1 - 1e-10)
            real = near & ~ignored[pairs.truth]
            matched = match_greedily(Pairs(own, wanted, pairs.overlaps).where(real), len(rows), num_wanted) >= 0
            rest = near & ignored[pairs.truth] & ~matched[own]
            passed_over = match_greedily(Pairs(own, wanted, pairs.overlaps).where(rest), len(rows), num_wanted) >= 0
            right, wrong = np.zeros(len(found.scores), bool), ~outside
            right[rows] = matched
            wrong[rows] &= ~passed_over & ~matched
            false_before = np.cumsum(wrong[order])
            hits = np.flatnonzero(right[order])
            ends = np.searchsorted(hits, starts)
            for label in np.flatnonzero(boxes):
                mine = hits[ends[label] : ends[label + 1]]
                before = false_before[starts[label] - 1] if starts[label] else 0
                table[level, :, label, size] = _interpolated(false_before[mine] - before, int(boxes[label]))
    return table


def _interpolated(false: np.ndarray, boxes: int) -> np.ndarray:
    """The best precision from each of RECALL_LEVELS on, given how many false ones came before each right box."""
    right = np.arange(1, len(false) + 1)
    precision = right / (right + false)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # beyond the last one nothing is reached
    return best[np.searchsorted(right / boxes, RECALL_LEVELS, side="left")]


def _ranks(found: Found, num_classes: int) -> np.ndarray:
    """How many boxes of its image and class stand before each found box, int64 (N,)."""
    group = found.images * num_classes + found.labels
    order = np.argsort(group, kind="stable")
    counts = np.unique(group, return_counts=True)[1]
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks
