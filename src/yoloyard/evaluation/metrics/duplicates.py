"""What a user sees of one path of a network, with or without suppression: duplicates, recall, and how sure it is.

A head that finds each object once may still find it twice, and with lower scores: mAP tells neither.

Shapes: N found boxes of all images.
"""

import numpy as np

from yoloyard.evaluation.metrics.matching import Found, Pairs, Truth, boxes_per_class, match_boxes, mean_over_classes
from yoloyard.evaluation.metrics.showing import neighbours

DUPLICATE_IOU = 0.8  # above which a box is a duplicate of a better one of its class


def duplicate_rows(found: Found, shown: np.ndarray) -> np.ndarray:
    """Which of the `shown` boxes, bool (N,), overlap a better one of them, of their image and class, as duplicates do.

    Returns bool (N,). Of boxes with equal scores the first one is the better one.
    """
    rows = np.zeros(len(found.scores), bool)
    rows[neighbours(found, shown, DUPLICATE_IOU).truth] = True
    return rows


def recall_of(found: Found, truth: Truth, pairs: Pairs, shown: np.ndarray, num_classes: int) -> float:
    """The recall of the `shown` boxes, bool (N,), at IoU 0.5, mean over classes; `pairs` as of `overlapping_pairs`."""
    matched, _ = match_boxes(found, truth, pairs.where(shown[pairs.found]))
    right = np.bincount(truth.labels[matched[matched >= 0]], minlength=num_classes)
    boxes = boxes_per_class(truth, num_classes)
    return float(mean_over_classes(np.where(boxes > 0, right / np.maximum(boxes, 1), np.nan)))


def median_score(found: Found, right: np.ndarray) -> float:
    """The median score of the boxes that are `right`, bool (N,); 0 if none is."""
    return float(np.median(found.scores[right])) if right.any() else 0.0
