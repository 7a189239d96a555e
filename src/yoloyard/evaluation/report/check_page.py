"""check.html: what is wrong with a data set, and what is in it, on one page that needs nothing but itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from yoloyard.common.errors import UserError
from yoloyard.common.files import write_whole_text
from yoloyard.data.audit.problems import KINDS, Problem
from yoloyard.data.index.index import Index
from yoloyard.data.pixels.decode import decode_image
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

SHOWN_SAMPLES = 6  # of a split
SHOWN_PAIRS = 8
SHOWN_FILES = 8  # with the most problems
SHOWN_REASONS = 4  # of such a file
IMAGE_SIDE = 480  # pixels of the longer side, to keep the page at a few MB
SIZE_LIMITS = (32**2, 96**2)  # COCO's: a box is small up to the first area, large above the second, in pixels


def class_rows(index: Index) -> list[tuple[str, int, int, int, int, int]]:
    """For each class its name, images, boxes, and of these the small, medium and large ones by COCO's limits.

    Boxes that are to be ignored are no labels, so they don't count.
    """
    image_of = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    sides = index.boxes[:, 2:] - index.boxes[:, :2]
    size_of = np.digitize(sides[:, 0] * sides[:, 1], SIZE_LIMITS, right=True)
    rows = []
    for label, name in enumerate(index.names):
        mine = (index.labels == label) & ~index.ignore
        small, medium, large = np.bincount(size_of[mine], minlength=3).tolist()
        rows.append((name, len(np.unique(image_of[mine])), int(mine.sum()), small, medium, large))
    return rows


def write_check_page(
    path: Path,
    title: str,
    indexes: Mapping[str, Index],
    problems: Mapping[str, Sequence[Problem]],
    pairs: Sequence[tuple[Path, Path, str]],
    facts: Mapping[str, object],
) -> None:
    """Write the page to `path`, whole or not at all.

    `indexes` are the splits that could be read, `problems` those of every split, `pairs` the duplicates: an image,
    the one that it is the same as, and how. Raises UserError if the file can't be written; an image that can't be shown
    is named.
    """
    everything = [problem for each in problems.values() for problem in each]
    sections = [
        ("Summary", _headline(indexes, everything) + facts_list(facts)),
        ("Problems", _kinds(problems)),
        ("All problems", _all_problems(problems)),
        ("Files with the most problems", _worst_files(indexes, problems)),
        ("Duplicates across splits", _pairs(pairs)),
    ]
    for split, index in indexes.items():
        if not len(index):
            continue
        rows = [[name, *map(str, counts)] for name, *counts in class_rows(index)]
        sections += [
            (f"Classes of {split}", sortable_table(("Class", "Images", "Boxes", "Small", "Medium", "Large"), rows)),
            (f"Labels of {split}", figures_grid(plots.label_statistics(index))),
            (f"Samples of {split}", _samples(index)),
        ]
    write_whole_text(path, html_page(title, [(heading, body) for heading, body in sections if body]))


def _headline(indexes: Mapping[str, Index], problems: Sequence[Problem]) -> str:
    errors = sum(problem.is_error for problem in problems)
    tiles = [
        ("Errors", f"{errors:,}", "to be fixed"),
        ("Warnings", f"{len(problems) - errors:,}", "to be looked at"),
    ]
    for split, index in indexes.items():
        skipped = f", {index.skipped:,} can't be used" if index.skipped else ""
        ignored = int(index.ignore.sum())
        boxes = counted(len(index.boxes) - ignored, "box", "boxes") + (
            f", {ignored:,} to be ignored" if ignored else ""
        )
        tiles.append((split, f"{len(index):,}", f"images, {boxes}{skipped}"))
    return number_tiles(tiles)


def _kinds(problems: Mapping[str, Sequence[Problem]]) -> str:
    counts = {split: Counter(problem.kind for problem in each) for split, each in problems.items()}
    rows = [
        [
            kind,
            "error" if is_error else "warning",
            *(f"{each[kind]:,}" if each[kind] else "-" for each in counts.values()),
        ]
        for kind, is_error in KINDS.items()
        if any(each[kind] for each in counts.values())
    ]
    return sortable_table(("Problem", "", *counts), rows) if rows else "<p>Nothing is wrong.</p>"


def _all_problems(problems: Mapping[str, Sequence[Problem]]) -> str:
    parts = []
    for split, each in problems.items():
        for kind in KINDS:
            lines = [f"<li>{escape(str(problem))}</li>" for problem in each if problem.kind == kind]
            if lines:
                parts.append(f"<h3>{escape(split)}: {kind}, {len(lines):,}</h3><ul>{''.join(lines)}</ul>")
    return "".join(parts)


def _worst_files(indexes: Mapping[str, Index], problems: Mapping[str, Sequence[Problem]]) -> str:
    """The files with more than one problem, with the image of that name where it can be used."""
    by_file: dict[tuple[str, str], list[Problem]] = {}
    for split, each in problems.items():
        for problem in each:
            file, _, line = problem.where.rpartition(":")
            by_file.setdefault((split, file if line.isdigit() else problem.where), []).append(problem)
    worst = sorted((key for key in by_file if len(by_file[key]) > 1), key=lambda key: -len(by_file[key]))[:SHOWN_FILES]
    wanted = {(split, Path(file).stem) for split, file in worst}
    images = {
        (split, path.stem): _labelled(index, position)
        for split, index in indexes.items()
        for position, path in enumerate(index.paths)
        if (split, path.stem) in wanted
    }
    parts = []
    for split, file in worst:
        reasons = "".join(f"<li>{escape(str(problem))}</li>" for problem in by_file[split, file][:SHOWN_REASONS])
        caption = f"<b>{escape(file)}</b> {len(by_file[split, file]):,} problems"
        image = images.get((split, Path(file).stem), "")
        parts.append(
            f'<figure class="pair"><figcaption>{caption}</figcaption><ul>{reasons}</ul><div>{image}</div></figure>'
        )
    return "".join(parts)


def _pairs(pairs: Sequence[tuple[Path, Path, str]]) -> str:
    parts = []
    for duplicate, original, how in pairs[:SHOWN_PAIRS]:
        caption = f"<figcaption><b>{escape(str(duplicate))}</b> {escape(how)} as {escape(str(original))}</figcaption>"
        parts.append(f'<figure class="pair">{caption}<div>{_shown(duplicate)}{_shown(original)}</div></figure>')
    more = len(pairs) - SHOWN_PAIRS
    return "".join(parts) + (f"<p>and {more:,} more, listed above</p>" if more > 0 else "")


def _samples(index: Index) -> str:
    with_boxes = np.flatnonzero(np.diff(index.offsets))
    chosen = with_boxes[np.linspace(0, len(with_boxes) - 1, min(SHOWN_SAMPLES, len(with_boxes))).astype(int)]
    parts = []
    for start in range(0, len(chosen), 2):
        shown = [int(position) for position in chosen[start : start + 2]]
        names = ", ".join(escape(index.paths[position].name) for position in shown)
        images = "".join(_labelled(index, position) for position in shown)
        parts.append(f'<figure class="pair"><figcaption>{names}</figcaption><div>{images}</div></figure>')
    return "".join(parts)


def _labelled(index: Index, position: int) -> str:
    boxes, labels, ignore = index.annotations(position)
    return _shown(index.paths[position], boxes, np.where(ignore, len(index.names), labels), [*index.names, "ignored"])


def _shown(
    path: Path, boxes: np.ndarray | None = None, labels: np.ndarray | None = None, names: Sequence[str] = ()
) -> str:
    """An image as HTML, with boxes (k, 4) xyxy in its pixels, or why it can't be shown."""
    try:
        image = decode_image(path)
    except UserError as error:
        return f"<p>{escape(str(error))}</p>"
    image, scale = shrunk(image, IMAGE_SIDE)
    if boxes is not None and labels is not None:
        image = draw_boxes(image, boxes * scale, labels, names)
    return image_element(image, "labels" if boxes is not None else "image", path.name)
