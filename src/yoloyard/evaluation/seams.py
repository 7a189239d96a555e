"""From the detections of overlapping tiles to those of the whole image: what a seam cuts is found once.

Shapes: T tiles, N boxes of all tiles, n and m boxes of two tiles. Sides are left, top, right, bottom.

A side of a box is *cut* if it lies at the edge of its tile, inside the image: the object may go on there. Two boxes of
one class, of tiles that overlap in a row or a column, are one object iff they agree at every side, or the one that ends
earlier is cut there. Chains of such pairs make an object that is larger than a tile; each side of the result comes from
boxes in which it isn't cut. A tile finds an object once, so two boxes of a tile never become one.

Without overlap nothing shows that two halves belong together: then nothing is joined.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from yoloyard.common.nms import suppress_found
from yoloyard.common.structures import Detections

CUT_PIXELS = 2.0  # a side so near to its tile's edge is cut
SIDE_PIXELS = 3.0  # boxes agree at a side that differs by this, and SIDE_SHARE of the smaller one's width or height
SIDE_SHARE = 0.15
INWARDS = np.array([1.0, 1.0, -1.0, -1.0])  # times a side: of two boxes the larger one ends earlier


def merge_seams(detections: Sequence[Detections], tiles: np.ndarray, iou: float, max_det: int) -> Detections:
    """Detections of an image from those of its tiles, all with boxes xyxy in pixels of the image.

    `tiles` int (T, 4) xyxy, a grid as `tile_boxes` makes it. An object has the best score of its boxes. Of objects of a
    class that overlap by more than `iou` the best one stays, as in one image, and of all at most `max_det`.
    """
    counts = [len(each) for each in detections]
    boxes = torch.cat([each.boxes for each in detections]).double().numpy() * INWARDS
    scores, labels = (torch.cat([getattr(each, name) for each in detections]) for name in ("scores", "labels"))
    sides = np.asarray(tiles) * INWARDS
    cut = (boxes <= np.repeat(sides + CUT_PIXELS, counts, axis=0)) & np.repeat(
        sides > sides.min(axis=0), counts, axis=0
    )
    ends = np.cumsum([0, *counts])
    found = [
        (cost, ends[tile] + row, ends[other] + column)
        for tile, other in _neighbours(np.asarray(tiles))
        for cost, row, column in _matches(
            *(
                (boxes[rows], cut[rows], labels[rows].numpy())
                for rows in (slice(*ends[tile : tile + 2]), slice(*ends[other : other + 2]))
            )
        )
    ]
    objects = _joined(sorted(found), np.repeat(np.arange(len(counts)), counts))
    merged = np.array([_extent(boxes[rows], cut[rows]) for rows in objects]).reshape(-1, 4) * INWARDS
    best = torch.tensor([max(rows, key=scores.__getitem__) for rows in objects], dtype=torch.int64)
    parts = torch.from_numpy(merged).float(), scores[best], labels[best]
    return Detections(*suppress_found(1, torch.zeros_like(best), *parts, iou, max_det)[0])


def _neighbours(tiles: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of tiles of one row, or of one column, that overlap. What lies over a corner is in such a pair, too."""
    for along in (0, 1):
        across = tiles[:, [1 - along, 3 - along]]
        for line in np.unique(across, axis=0):
            members = np.flatnonzero((across == line).all(axis=1))
            members = members[tiles[members, along].argsort(kind="stable")]
            for place, tile in enumerate(members):
                for other in members[place + 1 :]:
                    if tiles[other, along] >= tiles[tile, 2 + along]:
                        break
                    yield int(tile), int(other)


def _matches(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> Iterator[tuple[float, int, int]]:
    """Pairs of boxes of two tiles that are one object, and of each how much they differ, 0 .. 1.

    Of each tile there are boxes (n, 4) as INWARDS makes them, which sides are cut (n, 4), and labels (n,).
    """
    boxes, cut, labels = one
    others, cut_too, labels_too = other
    if not len(labels) or not len(labels_too):
        return
    first, second = boxes[:, None], others[None]
    size = np.minimum(*(-(each[..., :2] + each[..., 2:]) for each in (first, second)))
    differences = np.abs(first - second) / (SIDE_PIXELS + SIDE_SHARE * np.tile(size, 2))
    goes_on = np.where(first > second, cut[:, None], cut_too[None])
    cost = np.where(goes_on, 0, differences).max(axis=2)
    cost[labels[:, None] != labels_too[None]] = np.inf
    is_best = (cost == cost.min(axis=0)) & (cost == cost.min(axis=1, keepdims=True)) & (cost <= 1)
    for row, column in np.argwhere(is_best):
        yield float(cost[row, column]), int(row), int(column)


def _joined(pairs: Sequence[tuple[float, int, int]], owners: np.ndarray) -> list[list[int]]:
    """The boxes of each object, by pairs in their order. One that would give an object two boxes of a tile is left."""
    members = {row: [row] for row in range(len(owners))}
    for _, row, other in pairs:
        mine, theirs = members[row], members[other]
        if not {owners[each] for each in mine} & {owners[each] for each in theirs}:
            mine += theirs
            members |= dict.fromkeys(theirs, mine)
    return list({id(each): each for each in members.values()}.values())


def _extent(boxes: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """The sides of an object (4,), each of the boxes (n, 4) in which it isn't cut; if it is in all, the outermost."""
    known = np.where(cut & ~cut.all(axis=0), np.inf, boxes)
    return known.min(axis=0)
