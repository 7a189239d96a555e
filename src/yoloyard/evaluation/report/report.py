"""report.html: the results of a run or a validation, on one page without other files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yoloyard.common.errors import UserError
from yoloyard.common.structures import Detections
from yoloyard.data.index.index import Index
from yoloyard.data.pixels.view import view_of
from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.evaluation.metrics.duplicates import DUPLICATE_IOU
from yoloyard.evaluation.metrics.showing import shown
from yoloyard.evaluation.report import plots
from yoloyard.evaluation.report.drawing import draw_boxes, shrunk
from yoloyard.evaluation.report.page import Image, Row, embedded, labelled, write_page
from yoloyard.evaluation.validate import PATH_NAMES

SHOWN_IMAGES = 6  # of the best and of the worst
IMAGE_SIDE = 560  # pixels of the longer side, to keep the page at a few MB
SHOWN_PROBLEMS = 200
PIXELS_PER_INCH = 96  # of a page


def write_report(
    path: Path,
    *,
    title: str,
    metrics: Metrics,
    index: Index,
    predictions: Mapping[int, Detections],
    facts: Mapping[str, object],
    commands: Mapping[str, str],
    records: Sequence[Mapping[str, Any]] = (),
    train_index: Index | None = None,
    other: Metrics | None = None,
) -> None:
    """Write the page to `path`, whole or not at all.

    `metrics` are of `predictions` on `index`, `other` those of the network's other path, if it has one. `facts` (model,
    data, device, time, versions ...) and `commands` (by their purpose) are shown unchanged. `records` are the lines of
    metrics.jsonl, none for a validation. Statistics are those of the labels of `train_index`, without it of `index`;
    the problems of both are listed.
    Raises UserError if the file can't be written; the page names an image that can't be read any more.
    """
    found = [*(train_index.problems if train_index is not None else ()), *index.problems]
    found.sort(key=lambda problem: not problem.is_error)  # errors first; the list may be cut
    confusion = plots.confusion_matrix(metrics)
    several = sum(row.boxes > 0 for row in metrics.classes) > 1
    curve_figures = {
        "Precision against recall (IoU 0.5)": plots.precision_recall(metrics),
        "Precision, recall and F1 against confidence": plots.confidence_curves(metrics),
    }
    if len(metrics.classes) > 1:
        curve_figures["F1 of each class against confidence"] = plots.f1_by_class(metrics)
    worst, best = (
        [_compared(image_id, metrics, index, predictions.get(image_id)) for image_id in chosen]
        for chosen in _worst_and_best(metrics)
    )
    write_page(
        path,
        "report.html.j2",
        title=title,
        metrics=metrics,
        paths={PATH_NAMES[each.suppression]: each.path_figures() for each in (metrics, other) if each is not None},
        duplicate_iou=DUPLICATE_IOU,
        facts=facts,
        commands=commands,
        training_figures=plots.training_curves(records),
        curve_figures=curve_figures,
        class_bars={"Average precision of each class": plots.class_bars(metrics)} if several else {},
        confusion_figure=confusion,
        confusion_pixels=round(confusion.get_figwidth() * PIXELS_PER_INCH),
        worst=worst,
        best=best,
        labels_of="training" if train_index is not None else "validation",
        label_figures=plots.label_statistics(train_index or index),
        problems=found,
        max_problems=SHOWN_PROBLEMS,
    )


def _worst_and_best(metrics: Metrics) -> tuple[list[int], list[int]]:
    """The images with the most mistakes, then with the fewest right boxes; of the others those with the best F1."""
    counts = metrics.image_counts
    mistakes = counts.false + counts.missed
    worst = [image for image in np.lexsort((counts.correct, -mistakes))[:SHOWN_IMAGES].tolist() if mistakes[image]]
    f1 = 2 * counts.correct / np.maximum(2 * counts.correct + mistakes, 1)
    order = np.lexsort((-counts.correct, -f1)).tolist()
    return worst, [image for image in order if counts.correct[image] and image not in worst][:SHOWN_IMAGES]


def _compared(image_id: int, metrics: Metrics, index: Index, found: Detections | None) -> Row:
    """The labels of an image beside its detections."""
    path, counts = index.paths[image_id], metrics.image_counts
    text = f"{counts.correct[image_id]} right, {counts.missed[image_id]} missed, {counts.false[image_id]} false"
    try:
        pixels = view_of(path, index.pixels)
    except UserError as error:
        return Row(text, [Image(error=str(error))], path.name)
    predicted, scale = shrunk(pixels, IMAGE_SIDE)
    if found is not None:
        seen = shown(found, metrics.showing)
        boxes, labels, scores = (part.numpy() for part in (seen.boxes, seen.labels, seen.scores))
        predicted = draw_boxes(predicted, boxes * scale, labels, index.names, scores)
    images = [labelled(pixels, index, image_id, IMAGE_SIDE), embedded(predicted, path.name, "found")]
    return Row(text, images, path.name)
