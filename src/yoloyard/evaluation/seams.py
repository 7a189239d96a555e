"""From the detections of overlapping tiles to those of the whole image: what a seam cuts is found once.

Shapes: T tiles, N boxes of all tiles, n and m boxes of two tiles. Sides are left, top, right, bottom.

A side of a box is *cut* if it lies at the edge of its tile, inside the image: the object may go on there. Two boxes of
one class, of tiles that overlap in a row or a column, are one object iff they agree at every side, or the one that ends
earlier is cut there. Chains of such pairs make an object that is larger than a tile; each of its sides is the mean of
those that aren't cut. A tile finds an object once, so two boxes of a tile never become one.

Without overlap nothing shows that two halves belong together: then nothing is joined.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from yoloyard.common.nms import suppress_found
from yoloyard.common.structures import Detections
from yoloyard.data.index.tiled import Tiling

# Shares are of a box's width or height, since large boxes are less exact.
CUT_PIXELS, CUT_SHARE = 2.0, 0.1  # a side so near to its tile's edge is cut
CUT_LIMIT = 0.25  # of what two tiles share, so that two objects which both end there, apart or in contact, stay two
SIDE_PIXELS, SIDE_SHARE = 3.0, 0.25  # two boxes agree at a side that differs by this; the smaller box counts
INWARDS = np.array([1.0, 1.0, -1.0, -1.0])  # times a side: of two boxes the larger one ends earlier


def merge_seams(detections: Sequence[Detections], tiles: np.ndarray, iou: float, max_det: int) -> Detections:
    """Detections of an image, with boxes xyxy in its pixels, from those of its tiles, with boxes in pixels of the tile.

    `tiles` int (T, 4) xyxy, a grid as `tile_boxes` makes it. An object has the best score of its boxes. Of objects of a
    class that overlap by more than `iou` the best one stays, as in one image, and of all at most `max_det`.
    """
    owners = np.repeat(np.arange(len(tiles)), [len(each) for each in detections])
    boxes = torch.cat([each.boxes for each in detections]).double().numpy()
    boxes = (boxes + tiles[owners][:, [0, 1, 0, 1]]) * INWARDS
    scores, labels = (torch.cat([getattr(each, name) for each in detections]) for name in ("scores", "labels"))
    edges = tiles * INWARDS
    limit = np.maximum(CUT_LIMIT * _shared(tiles), CUT_PIXELS)
    reach = boxes - np.minimum(CUT_PIXELS + CUT_SHARE * _sizes(boxes), limit)
    cut = (reach <= edges[owners]) & (edges > edges.min(axis=0))[owners]
    objects = _joined(_pairs(boxes, reach, cut, labels.numpy(), owners, tiles), owners)

    outermost, total, whole = np.full_like(boxes, np.inf), np.zeros_like(boxes), np.zeros_like(boxes)
    np.minimum.at(outermost, objects, boxes)
    np.add.at(total, objects, np.where(cut, 0, boxes))
    np.add.at(whole, objects, ~cut)
    extents = torch.from_numpy(np.where(whole, total / np.maximum(whole, 1), outermost) * INWARDS).float()
    first = torch.from_numpy(np.flatnonzero(objects == np.arange(len(boxes))))
    best = torch.zeros_like(scores).scatter_reduce(0, torch.from_numpy(objects), scores, "amax")
    parts = extents[first], best[first], labels[first]
    return Detections(*suppress_found(1, torch.zeros_like(first), *parts, iou, max_det)[0])


class WholeImages:
    """Takes the detections of tiles as they come and gives those of an image as soon as all its tiles are there."""

    def __init__(self, tiling: Tiling, iou: float, max_det: int) -> None:
        self._tiling, self._limits = tiling, (iou, max_det)
        self._tiles = np.bincount(tiling.sources)  # of each image
        self._found: dict[int, dict[int, Detections]] = {}  # by image that is not whole yet, by tile

    def __call__(self, found: Mapping[int, Detections]) -> dict[int, Detections]:
        """Detections by image, of those that are whole now, from detections by tile, boxes in pixels of the tile."""
        whole = {}
        for tile, detections in found.items():
            image = int(self._tiling.sources[tile])
            tiles = self._found.setdefault(image, {})
            tiles[tile] = detections
            if len(tiles) == self._tiles[image]:
                numbers = sorted(self._found.pop(image))
                parts = [tiles[each] for each in numbers]
                whole[image] = merge_seams(parts, self._tiling.crops[numbers], *self._limits)
        return whole


def _shared(tiles: np.ndarray) -> np.ndarray:
    """Width, height, width and height (4,) of what neighbouring tiles share at least, of a tile alone its own."""
    steps = [np.diff(np.unique(tiles[:, axis])).max(initial=0) for axis in (0, 1)]
    return np.tile(tiles[0, 2:] - tiles[0, :2] - steps, 2)


def _neighbours(tiles: np.ndarray) -> Iterator[list[int]]:
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
                    yield [int(tile), int(other)]


def _sizes(boxes: np.ndarray) -> np.ndarray:
    """Width, height, width and height (N, 4) of boxes that INWARDS made."""
    return -np.tile(boxes[:, :2] + boxes[:, 2:], 2)


def _pairs(
    boxes: np.ndarray, reach: np.ndarray, cut: np.ndarray, labels: np.ndarray, owners: np.ndarray, tiles: np.ndarray
) -> list[tuple[float, int, int]]:
    """Boxes that are one object, two by two, and before them how much they differ, 0 .. 1; the most alike first.

    Boxes (N, 4) are as INWARDS makes them, and so is how far they may reach; `cut` (N, 4) says which sides are cut.
    """
    ends = np.searchsorted(owners, np.arange(len(tiles) + 1))
    tolerance = SIDE_PIXELS + SIDE_SHARE * _sizes(boxes)
    pairs: list[tuple[float, int, int]] = []
    for pair in _neighbours(tiles):
        if not np.diff(ends)[pair].all():
            continue
        low, high = tiles[pair, :2].max(axis=0), tiles[pair, 2:].min(axis=0)
        common = np.concatenate((low, high)) * INWARDS
        rows, columns = (
            ends[tile] + np.flatnonzero(((mine[:, :2] <= high) & (-mine[:, 2:] >= low)).all(axis=1))
            for tile, mine in ((tile, reach[ends[tile] : ends[tile + 1]]) for tile in pair)
        )
        if not len(rows) or not len(columns):
            continue
        one, two = boxes[rows, None], boxes[columns]
        goes_on = np.where(one > two, cut[rows, None], cut[columns])
        inside = np.abs(np.maximum(one, common) - np.maximum(two, common))  # all that is known of a side that goes on
        cost = np.where(goes_on, inside, np.abs(one - two)) / np.minimum(tolerance[rows, None], tolerance[columns])
        cost = cost.max(axis=2)
        cost[labels[rows, None] != labels[columns]] = np.inf
        is_best = (cost == cost.min(axis=0)) & (cost == cost.min(axis=1, keepdims=True)) & (cost <= 1)
        places = is_best.nonzero()
        pairs += zip(cost[places].tolist(), rows[places[0]].tolist(), columns[places[1]].tolist(), strict=True)
    return sorted(pairs)


def _joined(pairs: Sequence[tuple[float, int, int]], owners: np.ndarray) -> np.ndarray:
    """Of each box (N,) the first one of its object. A pair that would join two boxes of a tile is left out."""
    objects = np.arange(len(owners))
    members = [[row] for row in range(len(owners))]
    for _, *pair in pairs:
        first, other = sorted(objects[pair].tolist())
        if not set(owners[members[first]]) & set(owners[members[other]]):
            objects[members[other]] = first
            members[first] += members[other]
    return objects
