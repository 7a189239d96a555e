"""The one evaluator, of training and of `yoloyard val`: COCO's mean average precision, and the figures that explain it.

The result does not depend on the order in which images or boxes arrive.

Shapes: I images, C classes, K confidences, R = 101 recall levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from yoloyard.common.nms import KEEPS_ALL
from yoloyard.common.structures import Detections
from yoloyard.data.index.index import Index
from yoloyard.evaluation.metrics import matching
from yoloyard.evaluation.metrics.average_precision import SIZES, precision_table
from yoloyard.evaluation.metrics.duplicates import duplicate_rows, median_score, recall_of
from yoloyard.evaluation.metrics.matching import Curves, ImageCounts, Truth, gather_found
from yoloyard.evaluation.metrics.showing import IOUS, Showing, choose_showing, shown_rows

# What the console, metrics.jsonl, results.csv and the trackers show of an evaluation.
FIGURES = ("map50_95", "map50", "map75", "map_small", "map_medium", "map_large", "precision", "recall", "f1")


@dataclass(frozen=True)
class ClassMetrics:
    """One row of the table of classes. With no boxes all figures are 0 and count in no mean."""

    name: str
    images: int  # images with a box of this class
    boxes: int
    precision: float  # at Metrics.confidence, like recall and f1
    recall: float
    f1: float
    map50: float
    map50_95: float


@dataclass(frozen=True)
class Metrics:
    """The figures of one evaluation. A figure for which there are no boxes is 0."""

    map50_95: float
    map50: float
    map75: float
    map_small: float
    map_medium: float
    map_large: float
    precision: float  # means over classes with boxes, at `confidence` and IoU 0.5
    recall: float
    f1: float
    confidence: float  # where the mean F1 is best
    showing: Showing  # which boxes confusions, image_counts and background_false_positives count
    classes: tuple[ClassMetrics, ...]
    curves: Curves
    precision_at_recall: np.ndarray  # float64 (C, R) at IoU 0.5, as COCO interpolates it; nan for a class without boxes
    confusion: np.ndarray  # int64 (C + 1, C + 1): true class (row) found as (column); last: background
    image_counts: ImageCounts
    boxes_by_size: tuple[int, ...]  # small, medium, large; a box on a limit is in both sizes, as in COCO
    background_images: int  # images without any box
    background_false_positives: int  # boxes shown in them
    suppression: str  # "on", or "off": found by branches that find each object once
    shown_recall: float  # of the boxes that are shown, mean over classes at IoU 0.5
    duplicates: float  # shown boxes of an image that overlap a better one of their class, mean over images
    median_score: float  # of all found boxes that are right

    def figures(self) -> dict[str, float]:
        """FIGURES by name."""
        return {name: getattr(self, name) for name in FIGURES}

    def path_figures(self) -> dict[str, Any]:
        """What tells two paths of a network apart, one with and one without suppression."""
        return {
            "suppression": self.suppression,
            "map50_95": self.map50_95,
            "map50": self.map50,
            "conf": self.showing.conf,
            "recall": self.shown_recall,
            "duplicates_per_image": self.duplicates,
            "median_score": self.median_score,
        }


def evaluate(
    index: Index,
    predictions: Mapping[int, Detections],
    max_det: int = 300,
    showing: Showing | None = None,
    suppression: str = "on",
) -> Metrics:
    """Compare `predictions` with the true boxes of `index`.

    `predictions` maps image ids (positions in `index`) to boxes in pixels of the original image; an image without an
    entry had no detections. `max_det` is COCO's maxDets (its own tools default to 100), the number of boxes of a class
    that count in an image. Ignored boxes are COCO's crowds. Box sizes are box areas, not mask areas. Confusions and
    mistakes are those of the boxes that a user sees, by `showing` or, without it, by the best pair for these images.
    `suppression` says whether there was any; without it ("off") all boxes above a confidence are seen.
    Raises ValueError for an image id that `index` doesn't have.
    """
    if strangers := [image_id for image_id in predictions if not 0 <= image_id < len(index)]:
        raise ValueError(f"predictions for images that are not in the index: {sorted(strangers)[:5]}")
    num_classes = len(index.names)
    truth, found = gather_truth(index), gather_found(predictions, len(index))

    pairs = matching.overlapping_pairs(found, truth)
    matched, ignored = matching.match_boxes(found, truth, pairs)
    curves = matching.curves(found, truth, matched, ignored, num_classes)
    best = int(np.argmax(matching.mean_over_classes(curves.f1)))  # the lowest such confidence
    precision = np.where(np.isnan(curves.recall[:, best]), np.nan, np.nan_to_num(curves.precision[:, best]))
    at_best = np.stack((precision, curves.recall[:, best], curves.f1[:, best]), axis=1)  # (C, 3)

    precisions = precision_table(found, truth, pairs, num_classes, max_det)  # (10, R, C, 4)
    by_class = np.stack((precisions[0, :, :, 0].mean(axis=0), precisions[:, :, :, 0].mean(axis=(0, 1))), axis=1)

    boxes = matching.boxes_per_class(truth, num_classes)
    real, areas = ~truth.ignore, truth.areas[~truth.ignore]
    images = np.bincount(np.unique((truth.images[real], truth.labels[real]), axis=1)[1], minlength=num_classes)
    classes = tuple(
        ClassMetrics(name, int(images[label]), int(boxes[label]), *np.nan_to_num(at_best[label]).tolist(), *row)
        for label, (name, row) in enumerate(zip(index.names, np.nan_to_num(by_class).tolist(), strict=True))
    )
    mean_precision, mean_recall, mean_f1 = matching.mean_over_classes(at_best).tolist()
    background = np.diff(truth.starts) == 0
    ious = IOUS if suppression == "on" else (KEEPS_ALL,)
    showing = showing or choose_showing(found, truth, pairs, num_classes, ious)
    shown = shown_rows(found, showing)
    counts = matching.image_counts(found, truth, pairs, shown)
    return Metrics(
        map50_95=_mean(precisions[..., 0]),
        map50=_mean(precisions[0, ..., 0]),
        map75=_mean(precisions[5, ..., 0]),
        map_small=_mean(precisions[..., 1]),
        map_medium=_mean(precisions[..., 2]),
        map_large=_mean(precisions[..., 3]),
        precision=mean_precision,
        recall=mean_recall,
        f1=mean_f1,
        confidence=float(curves.confidences[best]),
        showing=showing,
        classes=classes,
        curves=curves,
        precision_at_recall=precisions[0, :, :, 0].T,
        confusion=matching.confusion_matrix(found, truth, pairs, shown, num_classes),
        image_counts=counts,
        boxes_by_size=tuple(int(((areas >= low) & (areas <= high)).sum()) for low, high in SIZES[1:]),
        background_images=int(background.sum()),
        background_false_positives=int(counts.false[background].sum()),
        suppression=suppression,
        shown_recall=recall_of(found, truth, pairs, shown, num_classes),
        duplicates=float(duplicate_rows(found, shown).sum() / max(len(index), 1)),
        median_score=median_score(found, (matched >= 0) & ~ignored),
    )


def gather_truth(index: Index) -> Truth:
    """The true boxes of all images."""
    boxes_xyxy = np.array(index.boxes, np.float64).reshape(-1, 4)
    return Truth(boxes_xyxy, np.array(index.labels), np.array(index.offsets), np.array(index.ignore))


def _mean(precisions: np.ndarray) -> float:
    there = precisions[~np.isnan(precisions)]
    return float(there.mean()) if len(there) else 0.0
