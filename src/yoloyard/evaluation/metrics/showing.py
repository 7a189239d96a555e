"""Which detections a user is shown: above which confidence, and how much boxes of one class may overlap.

Figures need many detections: low scores, overlaps up to 0.7. If all were shown, an object would have several boxes. So
each validation chooses the pair of confidence and overlap with the best F1, in which a duplicate is a false box and a
neighbour that is dropped a missed one.

Shapes: N found boxes of all images, R pairs of found boxes, C classes, K confidences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from yoloyard.common.nms import KEEPS_ALL
from yoloyard.common.structures import Detections
from yoloyard.config.settings import EvaluationConfig
from yoloyard.evaluation.metrics.matching import (
    Found,
    Pairs,
    Truth,
    curves,
    gather_found,
    match_boxes,
    mean_over_classes,
    pairwise_overlaps,
)

IOUS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
MIN_CONF = 0.05  # weaker boxes are shown to nobody who does not ask for them
TOLERANCE = 0.01  # of F1: less than a small validation set can tell, and about the error of suppressing twice


@dataclass(frozen=True)
class Showing:
    """Boxes with a score above `conf` are shown; of those of one class that overlap by more than `iou`, the best one.

    Without suppression `iou` is KEEPS_ALL. The defaults are for weights without a pair; benchmarks/showing.py measured
    them.
    """

    conf: float = 0.25
    iou: float = 0.5

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Showing:
        """The pair that a weights file holds, for the path that it was chosen for; the default without one."""
        kept = metadata.get("showing", {})
        return cls(kept.get("conf", cls.conf), kept.get("iou", cls.iou))

    def __str__(self) -> str:
        kept = "without suppression" if self.iou >= KEEPS_ALL else f"suppression at IoU {self.iou:g}"
        return f"confidence above {self.conf:g}, {kept}"

    def by_path(self, suppression: str) -> Showing:
        """The pair for the path with ("on") or without ("off") suppression, which has an overlap of its own."""
        if suppression == "off":
            return replace(self, iou=KEEPS_ALL)
        return self if self.iou < KEEPS_ALL else replace(self, iou=Showing.iou)

    def within(self, settings: EvaluationConfig) -> Showing:
        """The pair for detections that were made with `settings`: boxes that these dropped can't be shown."""
        pair = self.by_path(settings.suppression)
        iou = pair.iou if settings.suppression == "off" else min(pair.iou, settings.iou)
        return Showing(max(pair.conf, settings.conf), iou)


def choose_showing(found: Found, truth: Truth, pairs: Pairs, num_classes: int, ious: Sequence[float] = IOUS) -> Showing:
    """The pair with the best F1, mean over classes at IoU 0.5; the default where nothing right is found.

    `pairs` are those of `overlapping_pairs`; `ious` are the overlaps to choose from, ascending. Of those whose F1 is
    equal but for TOLERANCE the lowest is taken, which shows the fewest duplicates; of confidences the middle of the
    range over which F1 stays the best.
    """
    sure = found.scores >= MIN_CONF
    near = neighbours(found, sure, ious[0])
    peaks: list[tuple[float, Showing]] = []
    for iou in ious:
        kept = _kept(sure, near, iou)
        matched, ignored = match_boxes(found, truth, pairs.where(kept[pairs.found]))
        measured = curves(found, truth, matched, ignored | ~kept, num_classes)
        f1 = np.where(measured.confidences >= MIN_CONF, mean_over_classes(measured.f1), 0)
        first = int(f1.argmax())
        steps = int(np.append(f1[first:] < f1[first], True).argmax())  # over which it stays the best
        middle = measured.confidences[first + (steps - 1) // 2]
        peaks.append((float(f1[first]), Showing(round(float(middle), 3), iou)))
    best = max(f1 for f1, _ in peaks)
    if not best > 0:  # nor where it is no number, without true boxes
        return Showing(iou=max(Showing.iou, ious[0]))
    return next(showing for f1, showing in peaks if f1 >= best - TOLERANCE)


def shown_rows(found: Found, showing: Showing) -> np.ndarray:
    """Which found boxes are shown, bool (N,)."""
    sure = found.scores > showing.conf
    return _kept(sure, neighbours(found, sure, showing.iou), showing.iou)


def shown(found: Detections, showing: Showing) -> Detections:
    """The shown detections of one image, on the CPU."""
    flat = gather_found({0: found}, 1)
    rows = shown_rows(flat, showing)
    boxes, scores, labels = (torch.from_numpy(part[rows]) for part in (flat.boxes_xyxy, flat.scores, flat.labels))
    return Detections(boxes.float(), scores.float(), labels)


def neighbours(found: Found, sure: np.ndarray, iou: float) -> Pairs:
    """Pairs of sure boxes of one image and class that overlap by more than `iou`, the better one first."""
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for rows in np.split(np.flatnonzero(sure), np.flatnonzero(np.diff(found.images[sure])) + 1):
        overlaps = pairwise_overlaps(found.boxes_xyxy[rows], found.boxes_xyxy[rows])
        same_class = found.labels[rows, None] == found.labels[rows]
        near = np.nonzero(np.triu((overlaps > iou) & same_class, 1))
        parts.append((rows[near[0]], rows[near[1]], overlaps[near]))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _kept(sure: np.ndarray, pairs: Pairs, iou: float) -> np.ndarray:
    """Which sure boxes greedy suppression keeps, bool (N,): the fixpoint of `nms` over all images at once."""
    near = pairs.where(pairs.overlaps > iou)
    kept = sure
    while True:
        updated = sure.copy()
        updated[near.truth[kept[near.found]]] = False
        if np.array_equal(updated, kept):
            return kept
        kept = updated
