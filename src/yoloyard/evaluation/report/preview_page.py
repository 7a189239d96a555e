"""preview.html: what a network will see of its training images, on one page without other files.

Shapes: H W pixels, n boxes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yoloyard.common.image_size import ImageSize
from yoloyard.common.structures import Sample
from yoloyard.data.index.index import Index
from yoloyard.data.index.tiled import input_boxes
from yoloyard.data.pixels.view import view_of, viewed
from yoloyard.evaluation.report.drawing import draw_boxes, shrunk
from yoloyard.evaluation.report.page import Image, counted, embedded, labelled, write_page

IMAGE_SIDE, SMALL_SIDE = 560, 240  # pixels of the longer side on the page
SMALL_BOX = 8.0  # pixels of the shorter side: what a network of stride 8 hardly sees
SIZE_HEADS = ("Class", "Boxes", f"Below {SMALL_BOX:g} px", "Smallest", "Median", "Largest")


@dataclass(frozen=True)
class Preview:
    """A training image and what becomes of it."""

    position: int  # in the index
    seen: Sample
    boxes: int  # of all images that it was made of, pasted ones included
    alone: Mapping[str, Sample]  # under each augmentation alone


def box_sizes(index: Index, imgsz: ImageSize) -> list[tuple[str, ...]]:
    """A row of SIZE_HEADS for each class that has boxes: their shorter sides in pixels of the network's input.

    Without augmentation; boxes that are to be ignored don't count.
    """
    boxes = input_boxes(index, imgsz)
    sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    rows = []
    for label, name in enumerate(index.names):
        mine = sides[(index.labels == label) & ~index.ignore]
        if len(mine):
            quantiles = (f"{side:.1f}" for side in np.quantile(mine, (0, 0.5, 1)))
            rows.append((name, f"{len(mine):,}", f"{(mine < SMALL_BOX).mean():.0%}", *quantiles))
    return rows


def write_preview_page(
    path: Path,
    title: str,
    index: Index,
    previews: Sequence[Preview],
    sizes: Sequence[Sequence[object]],
    facts: Mapping[str, object],
) -> None:
    """Write the page to `path`, whole or not at all. Raises UserError if it can't be written, or an image not read."""
    before, after = sum(each.boxes for each in previews), sum(len(each.seen.labels) for each in previews)
    at_edge = sum(_at_edge(each.seen) for each in previews)
    height, width = previews[0].seen.image.shape[:2]
    write_page(
        path,
        "preview.html.j2",
        title=title,
        facts=facts,
        summary_tiles=[
            ("Network sees", f"{height}x{width}", "pixels, height x width"),
            ("Training", f"{len(index):,}", f"tiles of {len(index.whole):,} images" if index.tiling else "images"),
            ("Boxes dropped", f"{max(0, before - after):,}", f"of {before:,} that went into these samples"),
            ("Boxes at an edge", f"{at_edge:,}", f"of {after:,}, most of them cut"),
        ],
        size_heads=SIZE_HEADS,
        sizes=sizes,
        samples=[_sample(index, each) for each in previews],
    )


def _sample(index: Index, preview: Preview) -> tuple[str, str, list[Image], list[tuple[str, Image]]]:
    """Name, a line, the original beside what the network sees, and small images by the name of an augmentation."""
    name, seen = index.paths[preview.position].name, preview.seen
    original = view_of(index.paths[preview.position], index.pixels)
    if index.tiling is not None:
        left, top, right, bottom = index.tiling.crops[preview.position].tolist()
        name, original = f"{name} at {left}, {top}", np.ascontiguousarray(original[top:bottom, left:right])
    before = counted(preview.boxes, "box", "boxes")
    line = f"{len(seen.labels)} of {before}, {_at_edge(seen)} at an edge" if preview.boxes else "no boxes"
    pair = [
        labelled(original, index, preview.position, IMAGE_SIDE),
        _drawn(seen, index, name, "what the network sees", IMAGE_SIDE),
    ]
    alone = [(what, _drawn(sample, index, name, what, SMALL_SIDE)) for what, sample in preview.alone.items()]
    return name, line, pair, alone


def _drawn(sample: Sample, index: Index, name: str, what: str, side: int) -> Image:
    small, scale = shrunk(viewed(sample.image), side)
    return embedded(draw_boxes(small, sample.boxes_xyxy * scale, sample.labels, index.names), name, what)


def _at_edge(sample: Sample) -> int:
    """How many boxes reach an edge, where most of them are cut."""
    height, width = sample.image.shape[:2]
    return int((np.abs(sample.boxes_xyxy - [0, 0, width, height]) < 0.01).any(axis=1).sum())
