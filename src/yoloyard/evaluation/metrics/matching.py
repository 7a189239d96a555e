"""Which found box belongs to which true box, and what follows from it: precision, recall, F1, confusions, mistakes.

Shapes: N found boxes of all images, M true boxes of all images, R pairs that overlap, C classes, I images,
K confidences. Everything is flat numpy arrays over the whole data set; the only Python loop is over images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from yoloyard.common.structures import Detections

MATCH_IOU = 0.5  # a found box is right if it overlaps a true box of its class at least so much
CONFIDENCES = np.linspace(0, 1, 1001)


@dataclass(frozen=True)
class Truth:
    """The true boxes of all images, in the order of the images."""

    boxes_xyxy: np.ndarray  # float64 (M, 4), pixels of the original image
    labels: np.ndarray  # int64 (M,)
    ignore: np.ndarray  # bool (M,), crowd and difficult: neither to be found nor a mistake to find
    starts: np.ndarray  # int64 (I + 1,), image i has the rows starts[i] to starts[i + 1]

    @property
    def images(self) -> np.ndarray:
        """The image of each box, int64 (M,)."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


@dataclass(frozen=True)
class Found:
    """The found boxes of all images, in the order of the images, in each by descending score."""

    boxes_xyxy: np.ndarray  # float64 (N, 4), pixels of the original image
    scores: np.ndarray  # float64 (N,)
    labels: np.ndarray  # int64 (N,)
    starts: np.ndarray  # int64 (I + 1,), image i has the rows starts[i] to starts[i + 1]

    @property
    def images(self) -> np.ndarray:
        """The image of each box, int64 (N,)."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


@dataclass(frozen=True)
class Pairs:
    """Found and true boxes of one image that overlap by MATCH_IOU or more, whatever their classes."""

    found: np.ndarray  # int64 (R,), rows of Found
    truth: np.ndarray  # int64 (R,), rows of Truth
    overlaps: np.ndarray  # float64 (R,)

    def where(self, mask: np.ndarray) -> Pairs:
        """The pairs that `mask`, bool (R,), picks."""
        return Pairs(self.found[mask], self.truth[mask], self.overlaps[mask])


@dataclass(frozen=True)
class Curves:
    """Precision, recall and F1 against confidence, at IoU 0.5. A box counts where its score >= the confidence."""

    confidences: np.ndarray  # float64 (K,)
    precision: np.ndarray  # float64 (C, K), nan where nothing was found
    recall: np.ndarray  # float64 (C, K), nan for a class without true boxes
    f1: np.ndarray  # float64 (C, K), nan for a class without true boxes

    def best(self) -> int:
        """The position in `confidences` where the mean F1 is largest (the lowest such confidence)."""
        return int(np.argmax(mean_over_classes(self.f1)))


@dataclass(frozen=True)
class ImageCounts:
    """What is right and wrong in each image among the boxes that are shown."""

    correct: np.ndarray  # int64 (I,), true boxes that were found
    false: np.ndarray  # int64 (I,), found boxes without a true one
    missed: np.ndarray  # int64 (I,), true boxes that were not found


def gather_found(predictions: Mapping[int, Detections], num_images: int) -> Found:
    """All detections by image, in each by descending score; equal scores by label and position, not by arrival."""
    boxes, scores, labels = [np.zeros((0, 4))], [np.zeros(0)], [np.zeros(0, np.int64)]
    counts = np.zeros(num_images + 1, np.int64)
    for image_id in sorted(predictions):
        detections = predictions[image_id]
        image_boxes = detections.boxes.cpu().numpy().astype(np.float64)
        image_scores = detections.scores.cpu().numpy().astype(np.float64)
        image_labels = detections.labels.cpu().numpy()
        order = np.lexsort((*image_boxes.T[::-1], image_labels, -image_scores))
        boxes.append(image_boxes[order])
        scores.append(image_scores[order])
        labels.append(image_labels[order])
        counts[image_id + 1] = len(order)
    return Found(np.concatenate(boxes), np.concatenate(scores), np.concatenate(labels), np.cumsum(counts))


def overlapping_pairs(found: Found, truth: Truth) -> Pairs:
    """All pairs within an image that overlap by MATCH_IOU: IoU, or for an ignored box the found box's covered part.

    The covered part is COCO's rule for crowds: many boxes may lie in one ignored region.
    """
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for first, last, first_true, last_true in zip(
        found.starts[:-1], found.starts[1:], truth.starts[:-1], truth.starts[1:], strict=True
    ):
        if first == last or first_true == last_true:
            continue
        overlaps = pairwise_overlaps(
            found.boxes_xyxy[first:last], truth.boxes_xyxy[first_true:last_true], truth.ignore[first_true:last_true]
        )
        rows, columns = np.nonzero(overlaps >= MATCH_IOU)
        parts.append((rows + first, columns + first_true, overlaps[rows, columns]))
    if not parts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def match_greedily(pairs: Pairs, num_found: int, num_truth: int, preferred: np.ndarray | None = None) -> np.ndarray:
    """The true box of each found box, int64 (N,), -1 for none.

    By descending score, each takes the free true box that it overlaps most.
    Equal overlaps: where `preferred`, bool (R,), is set, then the later true box, as COCO's evaluation does.
    The rows of `pairs` stand for priority: in an image a lower row has the higher score. Instead of a loop over
    boxes, each round settles every found box whose choice nobody of higher priority can still want; that is exactly
    the greedy result, in as many rounds as the longest chain of neighbours.
    """
    if preferred is None:
        preferred = np.zeros(len(pairs.found), bool)
    order = np.lexsort((pairs.truth, preferred, pairs.overlaps, pairs.found))
    candidate, wanted = pairs.found[order], pairs.truth[order]
    matched = np.full(num_found, -1)
    settled, taken = np.zeros(num_found, bool), np.zeros(num_truth, bool)
    first_in_line = np.empty(num_truth, np.int64)
    while len(candidate):
        is_choice = np.append(candidate[1:] != candidate[:-1], True)
        first_in_line[wanted[::-1]] = candidate[::-1]  # the last write stays: the candidate of highest priority
        sure = is_choice & (first_in_line[wanted] == candidate)
        matched[candidate[sure]] = wanted[sure]
        settled[candidate[sure]] = True
        taken[wanted[sure]] = True
        remaining = ~(settled[candidate] | taken[wanted])
        candidate, wanted = candidate[remaining], wanted[remaining]
    return matched


def match_classes(found: Found, truth: Truth, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Match boxes of equal class.

    Returns the true box of each found box (-1: none), int64 (N,), and which found boxes lie in an ignored region of
    their class and count for nothing, bool (N,).
    """
    pairs = pairs.where(found.labels[pairs.found] == truth.labels[pairs.truth])
    return _match_with_ignore(found, truth, pairs, None)


def curves(found: Found, truth: Truth, matched: np.ndarray, ignored: np.ndarray, num_classes: int) -> Curves:
    """Precision, recall and F1 of each class at CONFIDENCES, from the result of `match_classes`."""
    correct = _counts_above(found, (matched >= 0) & ~ignored, num_classes)
    false = _counts_above(found, (matched < 0) & ~ignored, num_classes)
    boxes = boxes_per_class(truth, num_classes)[:, None]
    with np.errstate(invalid="ignore"):  # 0 / 0 is the nan that Curves promises
        precision = correct / (correct + false)
        recall = correct / boxes
        f1 = np.where(boxes > 0, 2 * correct / (correct + false + boxes), np.nan)
    return Curves(CONFIDENCES, precision, recall, f1)


def confusion_matrix(found: Found, truth: Truth, pairs: Pairs, shown: np.ndarray, num_classes: int) -> np.ndarray:
    """How often a true class (row) was found as which class (column), int64 (C + 1, C + 1), where `shown`, bool (N,).

    Matching is blind to classes (equal overlaps prefer the right class). The last row is background found as a class,
    the last column a true box that was not found. What lies in an ignored region of any class counts for nothing.
    """
    pairs = pairs.where(shown[pairs.found])
    same_class = found.labels[pairs.found] == truth.labels[pairs.truth]
    matched, ignored = _match_with_ignore(found, truth, pairs, same_class)
    shown = shown & ~ignored
    true_labels = np.where(matched >= 0, truth.labels[matched] if len(truth.labels) else -1, num_classes)[shown]
    missed = ~truth.ignore
    missed[matched[matched >= 0]] = False
    rows = np.concatenate((true_labels, truth.labels[missed]))
    columns = np.concatenate((found.labels[shown], np.full(missed.sum(), num_classes)))
    side = num_classes + 1
    return np.bincount(rows * side + columns, minlength=side * side).reshape(side, side)


def image_counts(found: Found, truth: Truth, pairs: Pairs, shown: np.ndarray) -> ImageCounts:
    """Right and wrong boxes of each image where `shown`, bool (N,); `pairs` as of `overlapping_pairs`."""
    num_images = len(truth.starts) - 1
    matched, ignored = match_classes(found, truth, pairs.where(shown[pairs.found]))
    shown = shown & ~ignored
    correct = np.bincount(found.images[shown & (matched >= 0)], minlength=num_images)
    false = np.bincount(found.images[shown & (matched < 0)], minlength=num_images)
    boxes = np.bincount(truth.images[~truth.ignore], minlength=num_images)
    return ImageCounts(correct, false, boxes - correct)


def boxes_per_class(truth: Truth, num_classes: int) -> np.ndarray:
    """How many boxes of each class there are to find, int64 (C,)."""
    return np.bincount(truth.labels[~truth.ignore], minlength=num_classes)


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """Mean of (C, ...) over the classes where it is not nan, (...); 0 where it is nan for all."""
    there = ~np.isnan(values)
    return np.where(there, values, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)


def _match_with_ignore(
    found: Found, truth: Truth, pairs: Pairs, preferred: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Match to the boxes that count; what is left and lies in an ignored region is marked."""
    in_ignored = truth.ignore[pairs.truth]
    real = None if preferred is None else preferred[~in_ignored]
    matched = match_greedily(pairs.where(~in_ignored), len(found.scores), len(truth.labels), real)
    ignored = np.zeros(len(found.scores), bool)
    ignored[pairs.found[in_ignored]] = True
    return matched, ignored & (matched < 0)


def _counts_above(found: Found, chosen: np.ndarray, num_classes: int) -> np.ndarray:
    """Of the chosen found boxes, how many of each class have at least each of CONFIDENCES, int64 (C, K)."""
    steps = len(CONFIDENCES)
    step = np.searchsorted(CONFIDENCES, found.scores[chosen], side="right") - 1
    counts = np.bincount(found.labels[chosen] * steps + step, minlength=num_classes * steps)
    return counts.reshape(num_classes, steps)[:, ::-1].cumsum(axis=1)[:, ::-1]


def pairwise_overlaps(found_xyxy: np.ndarray, true_xyxy: np.ndarray, ignore: np.ndarray | bool = False) -> np.ndarray:
    """IoU of (n, 4) with (m, 4), as (n, m); for ignored ones the share of the found box that is covered."""
    width = np.minimum(found_xyxy[:, None, 2], true_xyxy[:, 2]) - np.maximum(found_xyxy[:, None, 0], true_xyxy[:, 0])
    height = np.minimum(found_xyxy[:, None, 3], true_xyxy[:, 3]) - np.maximum(found_xyxy[:, None, 1], true_xyxy[:, 1])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    found_area = np.prod(found_xyxy[:, 2:] - found_xyxy[:, :2], axis=1)[:, None]
    true_area = np.prod(true_xyxy[:, 2:] - true_xyxy[:, :2], axis=1)
    union = np.where(ignore, found_area, found_area + true_area - intersection)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
