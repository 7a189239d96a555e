"""What a seam between tiles cuts is found once, and what merely touches stays apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from yoloyard.common.structures import Detections
from yoloyard.common.tiles import TileSpec, tile_boxes
from yoloyard.evaluation.seams import merge_seams

ROW = np.array([(0, 0, 100, 100), (80, 0, 180, 100), (160, 0, 260, 100)])
FOUR = np.array([(0, 0, 100, 100), (80, 0, 180, 100), (0, 80, 100, 180), (80, 80, 180, 180)])
JITTER_PIXELS = 1.5
CASES = 200


def found_in(*rows: tuple[float, ...]) -> Detections:
    """Rows of left, top, right, bottom, and a score, else 0.5, and a label, else 0."""
    full = torch.tensor([(*row, *(0.5, 0)[len(row) - 4 :]) for row in rows]).reshape(-1, 6).float()
    return Detections(full[:, :4], full[:, 4], full[:, 5].long())


def merge(found: list[Detections], tiles: np.ndarray, iou: float = 0.7, max_det: int = 300) -> Detections:
    """`merge_seams` of boxes in pixels of the image."""
    corners = torch.from_numpy(tiles[:, [0, 1, 0, 1]])
    moved = [replace(each, boxes=each.boxes - corner) for each, corner in zip(found, corners, strict=True)]
    return merge_seams(moved, tiles, iou, max_det)


def merged(tiles: np.ndarray, *found: Detections) -> list[list[float]]:
    """The boxes of the image, from left to right; nothing is found in the last tiles."""
    full = [*found, *[found_in()] * (len(tiles) - len(found))]
    return sorted(merge(full, tiles).boxes.tolist())


def test_an_object_cut_by_a_seam_has_its_full_extent_and_the_best_score() -> None:
    found = merge([found_in((60, 40, 99, 60, 0.9)), found_in((81, 42, 130, 62, 0.6))], ROW[:2])
    assert found.boxes.tolist() == [[60, 41, 130, 61]]
    assert found.scores.tolist() == [torch.tensor(0.9).item()]


def test_an_object_longer_than_a_tile_is_joined_through_a_chain() -> None:
    tiles = found_in((10, 40, 100, 60)), found_in((80, 40, 180, 60)), found_in((160, 40, 220, 60))
    assert merged(ROW, *tiles) == [[10, 40, 220, 60]]


def test_an_object_over_a_corner_is_one() -> None:
    tiles = [found_in((60, 70, 100, 100)), found_in((80, 70, 130, 100))]
    assert merged(FOUR, *tiles, found_in((60, 80, 100, 120)), found_in((80, 80, 130, 120))) == [[60, 70, 130, 120]]
    assert merged(FOUR, *tiles, found_in((60, 80, 100, 120))) == [[60, 70, 130, 120]]


def test_an_object_larger_than_all_tiles_is_one() -> None:
    assert merged(FOUR, *(found_in(tuple(tile)) for tile in FOUR.tolist())) == [[0, 0, 180, 180]]


def test_a_cross_of_two_objects_over_a_corner_is_two() -> None:
    wide, tall = (10, 85, 170, 95), (85, 10, 95, 170)
    tiles = [
        found_in(*((max(x, a), max(y, b), min(z, c), min(w, d)) for x, y, z, w in (wide, tall)))
        for a, b, c, d in FOUR.tolist()
    ]
    assert merged(FOUR, *tiles) == [[10, 85, 170, 95], [85, 10, 95, 170]]


@pytest.mark.parametrize("place", [78, 80, 85, 90, 98, 100, 102])
def test_objects_that_touch_near_a_seam_stay_apart(place: int) -> None:
    left = found_in((50, 40, min(place, 100), 60), *([(place, 40, 100, 60)] if place < 100 else []))
    right = found_in((max(place, 80), 40, 140, 60), *([(80, 40, place, 60)] if place > 80 else []))
    assert merged(ROW, left, right) == [[50, 40, place, 60], [place, 40, 140, 60]]


def test_of_three_in_a_row_the_middle_one_spans_the_seam() -> None:
    left = found_in((20, 40, 70, 60), (70, 40, 100, 60))
    right = found_in((80, 40, 115, 60), (115, 40, 160, 60))
    assert merged(ROW, left, right) == [[20, 40, 70, 60], [70, 40, 115, 60], [115, 40, 160, 60]]


def test_a_nested_object_stays_one_of_its_own() -> None:
    left, right = found_in((40, 20, 100, 80), (70, 40, 100, 60)), found_in((80, 20, 150, 80), (80, 40, 120, 60))
    assert merged(ROW, left, right) == [[40, 20, 150, 80], [70, 40, 120, 60]]


def test_stacked_objects_over_a_seam_stay_apart_also_where_they_overlap() -> None:
    left, right = found_in((40, 20, 100, 45), (50, 40, 100, 70)), found_in((80, 20, 150, 45), (80, 40, 130, 70))
    assert merged(ROW, left, right) == [[40, 20, 150, 45], [50, 40, 130, 70]]


def test_classes_stay_apart() -> None:
    assert len(merged(ROW, found_in((60, 40, 100, 60, 0.9, 0)), found_in((80, 40, 130, 60, 0.9, 1)))) == 2


def test_two_boxes_of_a_tile_never_become_one_object() -> None:
    double = found_in((60, 40, 100, 60, 0.9), (60, 42, 100, 64, 0.5))
    found = merge([double, found_in((80, 41, 130, 61))], ROW[:2], iou=1.0)
    assert found.boxes.tolist() == [[60, 40.5, 130, 60.5], [60, 42, 100, 64]]


def test_without_overlap_nothing_is_joined() -> None:
    tiles = np.array([(0, 0, 100, 100), (100, 0, 200, 100)])
    assert merged(tiles, found_in((60, 40, 100, 60)), found_in((100, 40, 130, 60))) == [
        [60, 40, 100, 60],
        [100, 40, 130, 60],
    ]


def test_suppression_and_the_limit_are_those_of_an_image() -> None:
    same = found_in((20, 20, 60, 60, 0.8), (20, 20, 60, 58, 0.7), (20, 20, 40, 60, 0.6))
    assert merge([same], ROW[:1]).scores.tolist() == pytest.approx([0.8, 0.6])
    assert merge([same], ROW[:1], 1.0, 2).scores.tolist() == pytest.approx([0.8, 0.7])
    assert len(merge([found_in()] * 3, ROW)) == 0


def clipped(boxes: np.ndarray, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each region (r, 4) holds of each box (n, 4), as (r, n, 4), and the area of that, (r, n)."""
    low = np.maximum(boxes[None, :, :2], regions[:, None, :2])
    high = np.minimum(boxes[None, :, 2:], regions[:, None, 2:])
    return np.concatenate((low, high), axis=2), (high - low).clip(0).prod(axis=2)


class Drawing:
    """Boxes of two classes in an image, many of which touch, and what an ideal detector sees of them in each tile."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.size = self.random.integers(64, 400, 2)  # width, height
        self.tile = int(self.random.choice([64, 96, 128, 160]))
        overlap = self.random.choice([0.05, 0.1, 0.2, 0.3, 0.5])
        self.visible = self.random.choice([0.1, 0.3, 0.5])
        self.tiles = tile_boxes(int(self.size[1]), int(self.size[0]), TileSpec(self.tile, overlap, self.visible))
        common, area = clipped(self.tiles, self.tiles)
        self.common = np.unique(common[area > 0], axis=0)
        self.boxes, self.labels = np.zeros((0, 4)), np.zeros(0, int)
        for _ in range(self.random.integers(2, 20)):
            box, label = self.box(), self.random.integers(2)
            if self.is_seen(box) and not self.is_like(box, self.boxes[self.labels == label]):
                self.boxes, self.labels = np.vstack((self.boxes, box)), np.append(self.labels, label)

    def box(self) -> np.ndarray:
        """A box: small, long or larger than a tile; or beside an earlier one."""
        kinds = [(8, 60), (60, 350)]
        size = np.minimum([self.random.uniform(*kinds[self.random.integers(2)]) for _ in range(2)], self.size)
        corner = self.random.uniform(0, self.size - size)
        if len(self.boxes) and self.random.random() < 0.5:
            beside, axis = self.boxes[self.random.integers(len(self.boxes))], self.random.integers(2)
            size[1 - axis] = (beside[2:] - beside[:2])[1 - axis]
            corner = beside[:2].copy()
            corner[axis] = beside[axis + 2] + self.random.uniform(-3, 3)
        return np.concatenate((corner, np.minimum(corner + size, self.size)))

    def seen(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each tile holds of each box, (T, n, 4), and whether that is found, (T, n)."""
        parts, areas = clipped(boxes, self.tiles)
        most = np.minimum(boxes[None, :, 2:] - boxes[None, :, :2], (self.tiles[:, 2:] - self.tiles[:, :2])[:, None])
        return parts, (areas > 0) & (areas >= self.visible * most.prod(axis=2))

    def is_seen(self, box: np.ndarray) -> bool:
        """Whether the tiles show all of a box that is large enough to be found."""
        parts, found = self.seen(box[None])
        if (box[2:] - box[:2]).min() < 8 or not found.any():
            return False
        outer = np.concatenate((parts[found].min(axis=0)[:2], parts[found].max(axis=0)[2:]))
        return bool((outer == box).all())

    def is_like(self, box: np.ndarray, others: np.ndarray) -> bool:
        """Whether suppression takes a box for another one, or two tiles see the same of both in what they share."""
        parts, areas = clipped(np.vstack((box, others)), self.common)
        both = (areas[:, :1] > 0) & (areas[:, 1:] > 0)
        alike = (np.abs(parts[:, :1] - parts[:, 1:]).max(axis=2) <= 7) & both
        shared = clipped(others, box[None])[1][0]
        whole = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
        return bool(alike.any() or (shared > 0.5 * whole).any())

    def detections(self) -> list[Detections]:
        """What is found in each tile, in the image's pixels."""
        parts, found = self.seen(self.boxes)
        parts = parts + self.random.uniform(-JITTER_PIXELS, JITTER_PIXELS, parts.shape)
        parts = np.clip(parts, np.tile(self.tiles[:, :2], 2)[:, None], np.tile(self.tiles[:, 2:], 2)[:, None])
        return [
            found_in(
                *(
                    (*box, self.random.random(), label)
                    for box, label in zip(boxes[rows], self.labels[rows], strict=True)
                )
            )
            for boxes, rows in zip(parts, found, strict=True)
        ]


def test_drawn_objects_are_found_exactly_once_each_with_their_sides() -> None:
    objects = cut = 0
    for seed in range(CASES):
        drawing = Drawing(seed)
        found = merge(drawing.detections(), drawing.tiles)
        differences = np.abs(found.boxes.numpy()[:, None] - drawing.boxes).max(axis=2)
        same = (differences <= JITTER_PIXELS + 1e-3) & (found.labels.numpy()[:, None] == drawing.labels)
        assert same.sum(axis=0).tolist() == [1] * len(drawing.boxes), seed
        assert len(found) == len(drawing.boxes), seed
        objects += len(drawing.boxes)
        cut += int((~(drawing.seen(drawing.boxes)[0] == drawing.boxes).all(axis=2).any(axis=0)).sum())
    assert objects > 4 * CASES
    assert cut > CASES / 2  # in no tile whole
