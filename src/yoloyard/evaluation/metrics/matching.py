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
class Boxes:
    """Boxes of all images, in the order of the images."""

    boxes_xyxy: np.ndarray  # float64 (n, 4), pixels of the original image
    labels: np.ndarray  # int64 (n,)
    starts: np.ndarray  # int64 (I + 1,), image i has the rows starts[i] to starts[i + 1]

    @property
    def images(self) -> np.ndarray:
        """The image of each box, int64 (n,)."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    @property
    def areas(self) -> np.ndarray:
        """The area of each box in square pixels, float64 (n,)."""
        return np.asarray(np.prod(self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2], axis=1))


@dataclass(frozen=True)
class Truth(Boxes):
    """The true boxes."""

    ignore: np.ndarray  # bool (M,), crowd or difficult: not to be found, and no mistake to find


@dataclass(frozen=True)
class Found(Boxes):
    """The found boxes, in each image by descending score."""

    scores: np.ndarray  # float64 (N,)


@dataclass(frozen=True)
class Pairs:
    """Pairs of boxes of one image that overlap, whatever their classes."""

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
    return Found(np.concatenate(boxes), np.concatenate(labels), np.cumsum(counts), np.concatenate(scores))


def overlapping_pairs(found: Found, truth: Truth) -> Pairs:
    """All pairs within an image that overlap by MATCH_IOU: IoU, or for an ignored box the found box's covered part.

    The covered part is COCO's rule for crowds: many boxes may lie in one ignored region.
    """
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for image in np.flatnonzero(np.diff(found.starts) * np.diff(truth.starts)):
        rows, columns = (slice(*boxes.starts[image : image + 2]) for boxes in (found, truth))
        overlaps = pairwise_overlaps(found.boxes_xyxy[rows], truth.boxes_xyxy[columns], truth.ignore[columns])
        near = np.nonzero(overlaps >= MATCH_IOU)
        parts.append((near[0] + rows.start, near[1] + columns.start, overlaps[near]))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def match_greedily(pairs: Pairs, num_found: int, num_truth: int, preferred: np.ndarray | None = None) -> np.ndarray:
    """The true box of each found box, int64 (N,), -1 for none.

    By descending score, each takes the free true box that it overlaps most; of equal ones a pair that is `preferred`,
    bool (R,), then the later true box, as COCO does. In an image a lower row of Found has the higher score. Each round
    settles every found box whose choice no box of higher score can still take: exactly the greedy result, in as many
    rounds as the longest chain of neighbours.
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


def match_boxes(found: Found, truth: Truth, pairs: Pairs, any_class: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Match found boxes to true ones of their class, or of `any_class`, where equal overlaps prefer their class.

    Returns the true box of each found box, int64 (N,), -1 for none, and which found boxes lie in an ignored region and
    count for nothing, bool (N,).
    """
    same_class = found.labels[pairs.found] == truth.labels[pairs.truth]
    if not any_class:
        pairs, same_class = pairs.where(same_class), same_class[same_class]
    in_ignored = truth.ignore[pairs.truth]
    counted = pairs.where(~in_ignored)
    matched = match_greedily(counted, len(found.scores), len(truth.labels), preferred=same_class[~in_ignored])
    ignored = np.zeros(len(found.scores), bool)
    ignored[pairs.found[in_ignored]] = True
    return matched, ignored & (matched < 0)


def curves(found: Found, truth: Truth, matched: np.ndarray, ignored: np.ndarray, num_classes: int) -> Curves:
    """Precision, recall and F1 of each class at CONFIDENCES, from the result of `match_boxes`."""
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

    Boxes match across classes. The last row is background that was found as a class, the last column a true box that
    was not found. A box in an ignored region of any class counts for nothing.
    """
    matched, ignored = match_boxes(found, truth, pairs.where(shown[pairs.found]), any_class=True)
    shown = shown & ~ignored
    true_labels = np.append(truth.labels, num_classes)[matched[shown]]  # without a match, -1, the last one
    missed = ~truth.ignore
    missed[matched[matched >= 0]] = False
    rows = np.concatenate((true_labels, truth.labels[missed]))
    columns = np.concatenate((found.labels[shown], np.full(missed.sum(), num_classes)))
    side = num_classes + 1
    return np.bincount(rows * side + columns, minlength=side * side).reshape(side, side)


def image_counts(found: Found, truth: Truth, pairs: Pairs, shown: np.ndarray) -> ImageCounts:
    """Right and wrong boxes of each image where `shown`, bool (N,); `pairs` as of `overlapping_pairs`."""
    num_images = len(truth.starts) - 1
    matched, ignored = match_boxes(found, truth, pairs.where(shown[pairs.found]))
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


def _counts_above(found: Found, chosen: np.ndarray, num_classes: int) -> np.ndarray:
    """Of the chosen found boxes, how many of each class have at least each of CONFIDENCES, int64 (C, K)."""
    steps = len(CONFIDENCES)
    step = np.searchsorted(CONFIDENCES, found.scores[chosen], side="right") - 1
    counts = np.bincount(found.labels[chosen] * steps + step, minlength=num_classes * steps)
    return counts.reshape(num_classes, steps)[:, ::-1].cumsum(axis=1)[:, ::-1]


def pairwise_overlaps(found_xyxy: np.ndarray, true_xyxy: np.ndarray, ignore: np.ndarray | bool = False) -> np.ndarray:
    """IoU of (n, 4) with (m, 4), as (n, m); for ignored ones the share of the found box that is covered."""
    left, top, right, bottom = found_xyxy.T[:, :, None]
    true_left, true_top, true_right, true_bottom = true_xyxy.T
    width = np.minimum(right, true_right) - np.maximum(left, true_left)
    height = np.minimum(bottom, true_bottom) - np.maximum(top, true_top)
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    found_area, true_area = (right - left) * (bottom - top), (true_right - true_left) * (true_bottom - true_top)
    union = np.where(ignore, found_area, found_area + true_area - intersection)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
