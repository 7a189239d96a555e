"""report.html: what a run or a validation came to, on one page that needs nothing but itself.

Plots are inline SVG, images are data URIs, style and script are in the page; everything that a user named is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from yoloyard.common.errors import UserError
from yoloyard.common.files import write_whole_text
from yoloyard.common.structures import Detections
from yoloyard.data.index.index import Index
from yoloyard.data.pixels.decode import decode_image
from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.evaluation.metrics.showing import shown
from yoloyard.evaluation.report import plots
from yoloyard.evaluation.report.drawing import draw_boxes, shrunk
from yoloyard.evaluation.report.page import (
    counted,
    facts_list,
    figures_grid,
    html_page,
    image_element,
    number_tiles,
    sortable_table,
)

SHOWN_IMAGES = 6  # of the best and of the worst
IMAGE_SIDE = 560  # pixels of the longer side, to keep the page at a few MB
SHOWN_PROBLEMS = 200


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
    statistics_of = "training" if train_index is not None else "validation"
    found = [*(train_index.problems if train_index is not None else ()), *index.problems]
    found.sort(key=lambda problem: not problem.is_error)  # errors first; the list may be cut
    problems = [*notes, *map(str, found)]
    sections = [
        ("Summary", _headline(metrics) + facts_list(facts)),
        ("Training", figures_grid(plots.training_curves(records))),
        ("Precision and recall", figures_grid(_curve_figures(metrics))),
        ("Classes", _class_table(metrics) + _class_bars(metrics)),
        ("Confusion matrix", _confusion(metrics)),
        ("By size, and on background", _sizes(metrics)),
        ("Worst images", _images(_worst(metrics), metrics, index, predictions)),
        ("Best images", _images(_best(metrics), metrics, index, predictions)),
        (f"Labels of the {statistics_of} set", figures_grid(plots.label_statistics(train_index or index))),
        ("Left out and noteworthy", _problems(problems)),
        ("Use the weights", _commands(commands)),
    ]
    write_whole_text(path, html_page(title, [(heading, body) for heading, body in sections if body]))


def _headline(metrics: Metrics) -> str:
    tiles = [
        ("mAP50-95", metrics.map50_95, "mean over classes and IoU 0.50 to 0.95"),
        ("mAP50", metrics.map50, "mean over classes at IoU 0.50"),
        ("Precision", metrics.precision, f"at confidence {metrics.confidence:.3f}"),
        ("Recall", metrics.recall, f"at confidence {metrics.confidence:.3f}"),
        ("F1", metrics.f1, "mean over classes, at its best confidence"),
    ]
    return number_tiles([(name, f"{value:.3f}", note) for name, value, note in tiles])


def _curve_figures(metrics: Metrics) -> dict[str, Figure]:
    figures = {
        "Precision against recall (IoU 0.5)": plots.precision_recall(metrics),
        "Precision, recall and F1 against confidence": plots.confidence_curves(metrics),
    }
    if len(metrics.classes) > 1:
        figures["F1 of each class against confidence"] = plots.f1_by_class(metrics)
    return figures


def _class_table(metrics: Metrics) -> str:
    heads = ("Class", "Images", "Boxes", "Precision", "Recall", "F1", "mAP50", "mAP50-95")
    rows = []
    for row in metrics.classes:
        figures = (row.precision, row.recall, row.f1, row.map50, row.map50_95)
        cells = [f"{value:.3f}" for value in figures] if row.boxes else ["-"] * len(figures)
        rows.append([row.name, str(row.images), str(row.boxes), *cells])
    note = (
        f"<p>Precision, recall and F1 at confidence {metrics.confidence:.3f} and IoU 0.5. "
        "Classes without boxes count in no mean. Click a heading to sort.</p>"
    )
    return note + sortable_table(heads, rows)


def _class_bars(metrics: Metrics) -> str:
    if sum(row.boxes > 0 for row in metrics.classes) < 2:
        return ""
    return figures_grid({"Average precision of each class": plots.class_bars(metrics)})


def _confusion(metrics: Metrics) -> str:
    figure = plots.confusion_matrix(metrics)
    width = round(figure.get_figwidth() * 96)
    return (
        f"<p>Boxes that are shown ({metrics.showing}), at IoU 0.5. Colour: share of the true class. "
        "Right column: not found. Bottom row: found where there is nothing.</p>"
        f'<div class="wide"><div style="width:{width}px" class="matrix">{plots.figure_svg(figure)}</div></div>'
    )


def _sizes(metrics: Metrics) -> str:
    limits = ("up to 32 x 32 pixels", "up to 96 x 96 pixels", "above 96 x 96 pixels")
    values = (metrics.map_small, metrics.map_medium, metrics.map_large)
    tiles = [
        (f"mAP50-95, {name}", f"{value:.3f}" if count else "-", f"{limit}: {counted(count, 'box', 'boxes')}")
        for name, value, limit, count in zip(
            ("small", "medium", "large"), values, limits, metrics.boxes_by_size, strict=True
        )
    ]
    images, false = metrics.background_images, metrics.background_false_positives
    rate = f"{false / images:.2f}" if images else "-"
    note = f"{counted(false, 'box', 'boxes')} found in {counted(images, 'image', 'images')} without any"
    tiles.append(("False positives per background image", rate, f"{note}, at confidence {metrics.showing.conf:g}"))
    return number_tiles(tiles)


def _worst(metrics: Metrics) -> list[int]:
    """The images with the most mistakes; of equal ones those with less that is right."""
    counts = metrics.image_counts
    mistakes = counts.false + counts.missed
    order = np.lexsort((counts.correct, -mistakes))
    return [int(image) for image in order[:SHOWN_IMAGES] if mistakes[image] > 0]


def _best(metrics: Metrics) -> list[int]:
    """The images with the best F1; of equal ones those with more boxes."""
    counts = metrics.image_counts
    f1 = 2 * counts.correct / np.maximum(2 * counts.correct + counts.false + counts.missed, 1)
    order = np.lexsort((-counts.correct, -f1))
    worst = set(_worst(metrics))
    return [int(image) for image in order if counts.correct[image] > 0 and image not in worst][:SHOWN_IMAGES]


def _images(image_ids: Sequence[int], metrics: Metrics, index: Index, predictions: Mapping[int, Detections]) -> str:
    if not image_ids:
        return ""
    note = f"<p>First the labels, then what was found, as predict shows it: {metrics.showing}.</p>"
    return note + "".join(_image(image_id, metrics, index, predictions.get(image_id)) for image_id in image_ids)


def _image(image_id: int, metrics: Metrics, index: Index, found: Detections | None) -> str:
    path, counts = index.paths[image_id], metrics.image_counts
    caption = (
        f"<figcaption><b>{escape(path.name)}</b> "
        f"{counts.correct[image_id]} right, {counts.missed[image_id]} missed, {counts.false[image_id]} false"
        "</figcaption>"
    )
    try:
        image = decode_image(path)
    except UserError as error:
        return f'<figure class="pair">{caption}<p>{escape(str(error))}</p></figure>'
    image, scale = shrunk(image, IMAGE_SIDE)
    boxes, labels, ignore = index.annotations(image_id)
    names = [*index.names, "ignored"]
    true = draw_boxes(image, boxes * scale, np.where(ignore, len(index.names), labels), names)
    predicted = image
    if found is not None:
        seen = shown(found, metrics.showing)
        boxes, labels, scores = (part.numpy() for part in (seen.boxes, seen.labels, seen.scores))
        predicted = draw_boxes(image, boxes * scale, labels, index.names, scores)
    images = image_element(true, "labels", path.name) + image_element(predicted, "found", path.name)
    return f'<figure class="pair">{caption}<div>{images}</div></figure>'


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    shown = "".join(f"<li>{escape(problem)}</li>" for problem in problems[:SHOWN_PROBLEMS])
    more = len(problems) - SHOWN_PROBLEMS
    rest = f"<p>and {more} more</p>" if more > 0 else ""
    return f"<p>{counted(len(problems), 'line', 'lines')}</p><ul>{shown}</ul>{rest}"


def _commands(commands: Mapping[str, str]) -> str:
    return "".join(f"<h3>{escape(what)}</h3><pre>{escape(command)}</pre>" for what, command in commands.items())
