"""report.html: what a run or a validation came to, on one page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from yoloyard.common.errors import UserError
from yoloyard.common.structures import Detections
from yoloyard.data.index.index import Index
from yoloyard.data.pixels.decode import decode_image
from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.evaluation.metrics.showing import shown
from yoloyard.evaluation.report import plots
from yoloyard.evaluation.report.drawing import draw_boxes, shrunk
from yoloyard.evaluation.report.page import Image, Row, counted, embedded, labelled, write_page

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
    notes: Sequence[str] = (),
) -> None:
    """Write the page to `path`, whole or not at all.

    `metrics` are of `predictions` on `index`. `facts` (model, data, device, time, versions ...) and `commands` (what
    for: the command) are shown as they are. `records` are the lines of metrics.jsonl, none for a plain validation.
    Label statistics are those of `train_index`, without one of `index`; what these left out is listed after `notes`.
    Raises UserError if the file can't be written; an image that can't be read any more is named in the page.
    """
    found = [*(train_index.problems if train_index is not None else ()), *index.problems]
    found.sort(key=lambda problem: not problem.is_error)  # errors first; the list may be cut
    confusion = plots.confusion_matrix(metrics)
    several = sum(row.boxes > 0 for row in metrics.classes) > 1
    worst = _worst(metrics)
    write_page(
        path,
        "report.html.j2",
        title=title,
        metrics=metrics,
        facts=facts,
        commands=commands,
        training_figures=plots.training_curves(records),
        curve_figures=_curve_figures(metrics),
        class_rows=_class_rows(metrics),
        class_bars={"Average precision of each class": plots.class_bars(metrics)} if several else {},
        confusion_figure=confusion,
        confusion_pixels=round(confusion.get_figwidth() * PIXELS_PER_INCH),
        size_tiles=_size_tiles(metrics),
        worst=[_compared(image_id, metrics, index, predictions.get(image_id)) for image_id in worst],
        best=[
            _compared(image_id, metrics, index, predictions.get(image_id)) for image_id in _best(metrics, set(worst))
        ],
        labels_of="training" if train_index is not None else "validation",
        label_figures=plots.label_statistics(train_index or index),
        problems=[*notes, *map(str, found)],
        max_problems=SHOWN_PROBLEMS,
    )


def _curve_figures(metrics: Metrics) -> dict[str, Figure]:
    figures = {
        "Precision against recall (IoU 0.5)": plots.precision_recall(metrics),
        "Precision, recall and F1 against confidence": plots.confidence_curves(metrics),
    }
    if len(metrics.classes) > 1:
        figures["F1 of each class against confidence"] = plots.f1_by_class(metrics)
    return figures


def _class_rows(metrics: Metrics) -> list[list[str]]:
    rows = []
    for row in metrics.classes:
        figures = (row.precision, row.recall, row.f1, row.map50, row.map50_95)
        cells = [f"{value:.3f}" for value in figures] if row.boxes else ["-"] * len(figures)
        rows.append([row.name, str(row.images), str(row.boxes), *cells])
    return rows


def _size_tiles(metrics: Metrics) -> list[tuple[str, str, str]]:
    sizes = (
        ("small", "up to 32 x 32 pixels", metrics.map_small),
        ("medium", "up to 96 x 96 pixels", metrics.map_medium),
        ("large", "above 96 x 96 pixels", metrics.map_large),
    )
    tiles = [
        (f"mAP50-95, {name}", f"{value:.3f}" if count else "-", f"{limit}: {counted(count, 'box', 'boxes')}")
        for (name, limit, value), count in zip(sizes, metrics.boxes_by_size, strict=True)
    ]
    images, false = metrics.background_images, metrics.background_false_positives
    rate = f"{false / images:.2f}" if images else "-"
    note = f"{counted(false, 'box', 'boxes')} found in {counted(images, 'image', 'images')} without any"
    tiles.append(("False positives per background image", rate, f"{note}, at confidence {metrics.showing.conf:g}"))
    return tiles


def _worst(metrics: Metrics) -> list[int]:
    """The images with the most mistakes; of equal ones those with less that is right."""
    counts = metrics.image_counts
    mistakes = counts.false + counts.missed
    order = np.lexsort((counts.correct, -mistakes))
    return [int(image) for image in order[:SHOWN_IMAGES] if mistakes[image] > 0]


def _best(metrics: Metrics, worst: set[int]) -> list[int]:
    """The images with the best F1; of equal ones those with more boxes; none of the `worst`."""
    counts = metrics.image_counts
    f1 = 2 * counts.correct / np.maximum(2 * counts.correct + counts.false + counts.missed, 1)
    order = np.lexsort((-counts.correct, -f1))
    return [int(image) for image in order if counts.correct[image] > 0 and image not in worst][:SHOWN_IMAGES]


def _compared(image_id: int, metrics: Metrics, index: Index, found: Detections | None) -> Row:
    """The labels of an image beside what was found."""
    path, counts = index.paths[image_id], metrics.image_counts
    text = f"{counts.correct[image_id]} right, {counts.missed[image_id]} missed, {counts.false[image_id]} false"
    try:
        pixels = decode_image(path)
    except UserError as error:
        return Row(text, [Image(error=str(error))], path.name)
    predicted, scale = shrunk(pixels, IMAGE_SIDE)
    if found is not None:
        seen = shown(found, metrics.showing)
        boxes, labels, scores = (part.numpy() for part in (seen.boxes, seen.labels, seen.scores))
        predicted = draw_boxes(predicted, boxes * scale, labels, index.names, scores)
    return Row(
        text, [labelled(pixels, index, image_id, IMAGE_SIDE), embedded(predicted, path.name, "found")], path.name
    )
