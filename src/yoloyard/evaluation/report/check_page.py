"""check.html: the problems and the content of a data set, on one page without other files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from yoloyard.common.errors import UserError
from yoloyard.data.audit.problems import KINDS, Problem
from yoloyard.data.index.index import Index
from yoloyard.data.pixels.view import view_of
from yoloyard.evaluation.metrics.average_precision import AREA_LIMITS
from yoloyard.evaluation.report import plots
from yoloyard.evaluation.report.page import Image, Row, counted, labelled, write_page

SHOWN_SAMPLES = 6  # of a split
SHOWN_PAIRS = 8
SHOWN_FILES = 8  # with the most problems
SHOWN_REASONS = 4  # of such a file
IMAGE_SIDE = 480  # pixels of the longer side, to keep the page at a few MB


def class_rows(index: Index) -> list[tuple[str, int, int, int, int, int]]:
    """For each class its name, images, boxes, and of these the small, medium and large ones by COCO's limits.

    Boxes that are to be ignored are no labels, so they don't count.
    """
    image_of = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    sides = index.boxes[:, 2:] - index.boxes[:, :2]
    size_of = np.digitize(sides[:, 0] * sides[:, 1], AREA_LIMITS[1:3], right=True)
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
    pairs: Sequence[tuple[tuple[Index, int], tuple[Index, int], str]],
    facts: Mapping[str, object],
    matching: tuple[Sequence[str], Sequence[Sequence[str]], Sequence[str]] = ((), (), ()),
) -> None:
    """Write the page to `path`, whole or not at all.

    `indexes` are the splits that could be read, `problems` those of every split, `pairs` the duplicates: an image as
    index and position, the one it repeats, and how, `matching` heads and rows of a table and lines below it. Raises
    UserError if the file can't be written; an image that can't be shown is named.
    """
    found = {(split, kind): [p for p in each if p.kind == kind] for split, each in problems.items() for kind in KINDS}
    kind_rows = [
        [kind, "error" if is_error else "warning", *(f"{count:,}" if count else "-" for count in counts)]
        for kind, is_error in KINDS.items()
        if any(counts := [len(found[split, kind]) for split in problems])
    ]
    write_page(
        path,
        "check.html.j2",
        title=title,
        facts=facts,
        summary_tiles=_summary_tiles(indexes, [problem for each in problems.values() for problem in each]),
        kind_heads=("Problem", "", *problems),
        kind_rows=kind_rows,
        problems=[(*where, lines) for where, lines in found.items() if lines],
        worst_files=_worst_files(indexes, problems),
        pairs=[
            Row(f"{how} as {one.paths[first]}", [_image(other, second), _image(one, first)], str(other.paths[second]))
            for (other, second), (one, first), how in pairs[:SHOWN_PAIRS]
        ],
        more_pairs=max(0, len(pairs) - SHOWN_PAIRS),
        matching=matching,
        splits=[
            (split, class_rows(index), plots.label_statistics(index), _samples(index))
            for split, index in indexes.items()
            if len(index)
        ],
    )


def _summary_tiles(indexes: Mapping[str, Index], problems: Sequence[Problem]) -> list[tuple[str, str, str]]:
    errors = sum(problem.is_error for problem in problems)
    tiles = [("Errors", f"{errors:,}", "to be fixed"), ("Warnings", f"{len(problems) - errors:,}", "to be looked at")]
    for split, index in indexes.items():
        ignored = int(index.ignore.sum())
        note = f"images, {counted(len(index.boxes) - ignored, 'box', 'boxes')}"
        note += f", {ignored:,} to be ignored" if ignored else ""
        note += f", {index.skipped:,} can't be used" if index.skipped else ""
        tiles.append((split, f"{len(index):,}", note))
    return tiles


def _worst_files(indexes: Mapping[str, Index], problems: Mapping[str, Sequence[Problem]]) -> list[Row]:
    """The files with more than one problem, with the image of that name where it can be used."""
    by_file: dict[tuple[str, str], list[Problem]] = {}
    for split, each in problems.items():
        for problem in each:
            file, _, line = problem.where.rpartition(":")
            by_file.setdefault((split, file if line.isdigit() else problem.where), []).append(problem)
    worst = sorted((key for key in by_file if len(by_file[key]) > 1), key=lambda key: -len(by_file[key]))[:SHOWN_FILES]
    stems = [(split, Path(file).stem) for split, file in worst]
    images = {
        (split, path.stem): [_image(index, position)]
        for split, index in indexes.items()
        for position, path in enumerate(index.paths)
        if (split, path.stem) in stems
    }
    return [
        Row(f"{len(by_file[key]):,} problems", images.get(stem, []), key[1], [*map(str, by_file[key][:SHOWN_REASONS])])
        for key, stem in zip(worst, stems, strict=True)
    ]


def _samples(index: Index) -> list[Row]:
    with_boxes = np.flatnonzero(np.diff(index.offsets))
    chosen = with_boxes[np.linspace(0, len(with_boxes) - 1, min(SHOWN_SAMPLES, len(with_boxes))).astype(int)].tolist()
    rows = [chosen[start : start + 2] for start in range(0, len(chosen), 2)]
    return [
        Row(", ".join(index.paths[each].name for each in row), [_image(index, each) for each in row]) for row in rows
    ]


def _image(index: Index, position: int) -> Image:
    try:
        return labelled(view_of(index.paths[position], index.pixels), index, position, IMAGE_SIDE)
    except UserError as error:
        return Image(error=str(error))
