"""The plots of the report, as matplotlib figures that know nothing of each other and touch no global state.

`figure_svg` turns one into SVG for a page: its ink takes the page's text colour, so that it fits light and dark.
Shapes: C classes, K confidences, R recall levels.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from yoloyard.data.index.index import Index
from yoloyard.evaluation.metrics.average_precision import RECALL_LEVELS
from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.evaluation.metrics.matching import mean_over_classes

# Okabe and Ito, "Color Universal Design" (2008): told apart with any kind of colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINES = ("-", "--", ":", "-.")  # of more lines than there are colours
MOST_NUMBERED_CLASSES = 12  # a larger confusion matrix has colours only
MOST_BARS = 40  # per image of label statistics
_INK = "#010203"  # stands for the page's text colour
_DENSITY = LinearSegmentedColormap.from_list("density", ["#0072b200", "#0072b2ff"])  # transparent to blue


def precision_recall(metrics: Metrics) -> Figure:
    """Precision against recall at IoU 0.5; the area under a line is that class's AP50."""
    return _class_lines(metrics, "map50", RECALL_LEVELS, metrics.precision_at_recall, "recall", "precision")


def f1_by_class(metrics: Metrics) -> Figure:
    """F1 of each class against confidence."""
    return _class_lines(metrics, "f1", metrics.curves.confidences, metrics.curves.f1, "confidence", "F1")


def confidence_curves(metrics: Metrics) -> Figure:
    """Mean precision, recall and F1 against confidence; the best F1 is marked."""
    curves = metrics.curves
    figure, axes = _figure()
    precision = np.where(np.isnan(curves.recall[:, :1]), np.nan, curves.precision)
    lines = {
        "precision": np.where(np.isnan(precision).all(axis=0), np.nan, mean_over_classes(precision)),
        "recall": mean_over_classes(curves.recall),
        "F1": mean_over_classes(curves.f1),
    }
    for colour, (name, values) in zip(COLOURS, lines.items(), strict=False):
        axes.plot(curves.confidences, values, color=colour, linewidth=1.8, label=name)
    axes.axvline(metrics.confidence, color=_INK, linewidth=0.8, linestyle=":")
    axes.plot(metrics.confidence, metrics.f1, "o", color=COLOURS[2], markersize=4)
    _legend(figure, 3, f"best F1 {metrics.f1:.3f} at {metrics.confidence:.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="mean over classes")
    return figure


def confusion_matrix(metrics: Metrics) -> Figure:
    """True classes as rows, found classes as columns; colour: the share of the row, number: how many boxes.

    Classes that neither occur nor were found are left out.
    """
    occurs = metrics.confusion.sum(axis=0) + metrics.confusion.sum(axis=1) > 0
    occurs[-1] = True
    counts = metrics.confusion[occurs][:, occurs]
    all_names = (*(row.name for row in metrics.classes), "background")
    names = [_short(name) for name, shown in zip(all_names, occurs, strict=True) if shown]
    side = len(names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(max(3.4, 1.6 + (0.5 if side <= MOST_NUMBERED_CLASSES + 1 else 0.17) * side), 20)
    figure, axes = _figure(size, width=size + 0.6)
    axes.imshow(shares, cmap=_DENSITY, vmin=0, vmax=1, interpolation="nearest")
    small = 9 if side <= 20 else 7
    axes.set_xticks(range(side), names, rotation=90 if side > 4 else 0, fontsize=small)
    axes.set_yticks(range(side), names, fontsize=small)
    axes.set(xlabel="found as", ylabel="true class")
    axes.tick_params(length=0)
    axes.grid(False)
    if side <= MOST_NUMBERED_CLASSES + 1:
        for row, column in np.argwhere(counts > 0):
            ink = "white" if shares[row, column] > 0.55 else _INK
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=ink, fontsize=8)
    return figure


def class_bars(metrics: Metrics) -> Figure:
    """mAP50-95 (full) and mAP50 (pale) of each class with boxes, best first."""
    rows = sorted((row for row in metrics.classes if row.boxes), key=lambda row: row.map50_95)
    figure, axes = _figure(1.0 + 0.19 * max(len(rows), 4))
    axes.barh(range(len(rows)), [row.map50 for row in rows], color=COLOURS[0], alpha=0.35, label="mAP50")
    axes.barh(range(len(rows)), [row.map50_95 for row in rows], color=COLOURS[0], height=0.5, label="mAP50-95")
    axes.set_xlim(0, 1)
    _name_bars(axes, [row.name for row in rows])
    _legend(figure, 2)
    return figure


def training_curves(records: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Losses, figures, learning rates and the gradients' norm by epoch from the lines of metrics.jsonl, by title.

    Nothing for no records.
    """
    columns = sorted({key for record in records for key in record})
    groups = {
        "Training losses": [name for name in columns if name.startswith("train/")],
        "Validation figures": ["val/map50_95", "val/map50", "val/precision", "val/recall"],
        "Learning rate": [name for name in columns if name.startswith("lr/")],
        "Gradient norm": ["gradient/norm"],
    }
    figures = {}
    for title, names in groups.items():
        lines: dict[bytes, list[str]] = {}  # equal ones are one line with all their names
        for name in names:
            points = [(record["epoch"], record[name]) for record in records if record.get(name) is not None]
            if points:
                lines.setdefault(np.array(points, float).tobytes(), []).append(name)
        if lines:
            figures[title] = _epoch_lines(
                [(", ".join(same), np.frombuffer(points).reshape(-1, 2)) for points, same in lines.items()],
                top=1 if title == "Validation figures" else None,
            )
    return figures


def compared_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Figure]:
    """A figure for each of the columns that runs are judged by, with a line for each run that has it.

    `runs` are the lines of metrics.jsonl by the name of the run.
    """
    columns = dict.fromkeys(key for records in runs.values() for record in records for key in record)
    shown = [name for name in columns if name.startswith("train/") or name in ("lr/weight", "gradient/norm")]
    figures = {}
    for name in ("val/map50_95", "val/map50", *shown):
        lines = []
        for run, records in runs.items():
            points = [(record["epoch"], record[name]) for record in records if record.get(name) is not None]
            lines += [(_short(run, keeps_end=True), np.array(points, float))] * bool(points)
        if lines:
            figures[name] = _epoch_lines(lines, top=1 if name.startswith("val/") else None)
    return figures


def label_statistics(index: Index) -> dict[str, Figure]:
    """What the labels of a data set look like: how many of each class, how large, where, how many an image."""
    counted = ~np.asarray(index.ignore)
    boxes, labels = np.asarray(index.boxes, float)[counted], np.asarray(index.labels)[counted]
    image_of = np.repeat(np.arange(len(index)), np.diff(index.offsets))[counted]
    per_image = np.bincount(image_of, minlength=len(index))
    height, width = np.asarray(index.sizes, float).reshape(-1, 2)[image_of].T
    relative = boxes / np.maximum(np.stack((width, height, width, height), axis=1), 1)
    figures = {"Boxes per class": _class_counts(index.names, np.bincount(labels, minlength=len(index.names)))}

    figure, axes = _figure()
    most = int(per_image.max(initial=0))
    images = np.bincount(np.minimum(per_image, MOST_BARS))
    axes.bar(range(len(images)), images, width=1.0, color=COLOURS[0])
    more = f" (last bar: {MOST_BARS} to {most})" if most > MOST_BARS else ""
    axes.set(xlabel=f"boxes in an image{more}", ylabel="images")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figures["Boxes per image"] = figure

    sizes = relative[:, 2:] - relative[:, :2]
    figures["Box sizes"] = _density(sizes[:, 0], sizes[:, 1], "width / image width", "height / image height")
    centres = (relative[:, :2] + relative[:, 2:]) / 2
    figures["Box centres"] = _density(centres[:, 0], centres[:, 1], "x / image width", "y / image height")
    figures["Box centres"].axes[0].invert_yaxis()
    return figures


def figure_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element for a page; its ink is the page's text colour, its background the page's."""
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    text = _saved(figure, format="svg", transparent=True, metadata=nothing).decode()
    return text[text.index("<svg") :].replace(_INK, "currentColor")


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG on white, for tools that show images."""
    return _saved(figure, format="png", dpi=150, facecolor="white")


def _saved(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    # Text stays text: it is selectable, and the browser has the glyphs that matplotlib's font lacks.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def _legend(figure: Figure, columns: int, title: str = "") -> None:
    """A legend below the axes."""
    look = {"frameon": False, "labelcolor": _INK, "fontsize": 9, "title_fontsize": 9}
    space = {"handlelength": 1.4, "columnspacing": 1.4}
    legend = figure.legend(loc="outside lower center", ncols=columns, title=title or None, **look, **space)
    legend.get_title().set_color(_INK)


def _figure(height: float = 3.4, width: float = 4.8) -> tuple[Figure, Axes]:
    """An empty figure with the common look; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=_INK, alpha=0.4)
    axes.tick_params(colors=_INK, labelsize=9, length=3)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.grid(True, color=_INK, alpha=0.12, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _class_lines(metrics: Metrics, figure_name: str, x: np.ndarray, lines: np.ndarray, *axis_labels: str) -> Figure:
    """A line (K,) of (C, K) for each class that has one, and their mean, each with its figure of that name."""
    figure, axes = _figure()
    there = np.flatnonzero(~np.isnan(lines).all(axis=1))
    coloured = 1 < len(there) <= len(COLOURS)  # more classes are drawn grey
    if coloured:
        for colour, position in zip(COLOURS, there, strict=False):
            row = metrics.classes[position]
            label = f"{_short(row.name)} {getattr(row, figure_name):.3f}"
            axes.plot(x, lines[position], color=colour, linewidth=1.2, label=label)
    elif len(there) > 1:
        for position in there:
            axes.plot(x, lines[position], color=_INK, alpha=0.18, linewidth=0.7)
        axes.plot([], [], color=_INK, alpha=0.3, linewidth=0.9, label=f"{len(there)} classes")
    label = f"mean {getattr(metrics, figure_name):.3f}"
    axes.plot(x, mean_over_classes(lines), color=_INK if coloured else COLOURS[0], linewidth=2.2, label=label)
    _legend(figure, 2)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=axis_labels[0], ylabel=axis_labels[1])
    return figure


def _epoch_lines(lines: Sequence[tuple[str, np.ndarray]], top: float | None) -> Figure:
    """Lines with their names: points (k, 2), epoch and value, up to `top` or the highest value."""
    figure, axes = _figure(3.2 + 0.2 * ((len(lines) + 2) // 3))
    marker = "o" if max(len(points) for _, points in lines) < 15 else None
    for position, (name, points) in enumerate(lines):
        colour, line = COLOURS[position % len(COLOURS)], LINES[position // len(COLOURS) % len(LINES)]
        axes.plot(*points.T, line, color=colour, linewidth=1.6, marker=marker, markersize=3, label=name)
    last = max(points[:, 0].max() for _, points in lines)
    axes.set(xlabel="epoch", xlim=(0, last + max(0.5, 0.02 * last)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylim(0, top)
    _legend(figure, 2 if len(lines) == 4 else 3)
    return figure


def _class_counts(names: Sequence[str], counts: np.ndarray) -> Figure:
    """Bars of the classes with the most boxes; the label says how many are left out."""
    shown = np.argsort(-counts, kind="stable")[:MOST_BARS][::-1]
    figure, axes = _figure(max(3.4, 0.8 + 0.19 * len(shown)))
    axes.barh(range(len(shown)), counts[shown], color=COLOURS[0], height=min(0.75, 0.1 + 0.15 * len(shown)))
    for row, label in enumerate(shown):
        axes.annotate(str(counts[label]), (counts[label], row), (3, 0), textcoords="offset points", va="center",
                      fontsize=7, color=_INK)  # fmt: skip
    left_out = len(counts) - len(shown)
    axes.set_xlabel(f"boxes ({left_out} rarer classes not shown)" if left_out else "boxes")
    axes.margins(x=0.12)
    _name_bars(axes, [names[label] for label in shown])
    return figure


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), map(_short, names), fontsize=8)
    axes.set_ylim(-0.6, max(len(names), 1) - 0.4)
    axes.grid(False, axis="y")


def _density(x: np.ndarray, y: np.ndarray, x_label: str, y_label: str) -> Figure:
    """How many points fall where in the unit square."""
    figure, axes = _figure()
    counts, _, _ = np.histogram2d(np.clip(x, 0, 1), np.clip(y, 0, 1), bins=50, range=((0, 1), (0, 1)))
    there, norm = np.where(counts > 0, counts, np.nan), LogNorm(1, max(counts.max(), 2))
    colours = LinearSegmentedColormap.from_list("density", ["#56b4e966", "#0072b2ff"])
    axes.imshow(there.T, colours, norm, aspect="auto", interpolation="nearest", origin="lower", extent=(0, 1, 0, 1))
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure


def _short(name: str, keeps_end: bool = False) -> str:
    """A name that fits beside a plot, with its beginning or its end; "$" would begin a formula."""
    cut = f"…{name[-23:]}" if keeps_end else f"{name[:23]}…"
    return (name if len(name) <= 24 else cut).replace("$", r"\$")
