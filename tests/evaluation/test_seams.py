"""What a seam between tiles cuts is found once, and what merely touches stays apart."""

import numpy as np
import torch

from yoloyard.common.structures import Detections
from yoloyard.evaluation.seams import merge_seams

ROW = np.array([(0, 0, 100, 100), (80, 0, 180, 100), (160, 0, 260, 100)])


def found_in(*rows: tuple[float, float, float, float] | tuple[float, ...]) -> Detections:
    """Rows of left, top, right, bottom, score 0.5 and label 0 if they aren't given."""
    full = torch.tensor([(*row, *(0.5, 0)[len(row) - 4 :]) for row in rows], dtype=torch.float32).reshape(-1, 6)
    return Detections(full[:, :4], full[:, 4], full[:, 5].long())


def merged(*tiles: Detections) -> list[list[float]]:
    """The boxes of ROW's tiles, merged, from left to right."""
    return sorted(merge_seams(tiles, ROW, iou=0.7, max_det=300).boxes.tolist())


def test_an_object_cut_by_a_seam_has_its_full_extent_and_the_best_score() -> None:
    tiles = [found_in((60, 40, 99, 60, 0.9)), found_in((81, 41, 130, 61, 0.6)), found_in()]
    found = merge_seams(tiles, ROW, iou=0.7, max_det=300)
    assert found.boxes.tolist() == [[60, 40, 130, 61]]
    assert found.scores.tolist() == [torch.tensor(0.9).item()]


def test_an_object_longer_than_a_tile_is_joined_through_a_chain() -> None:
    tiles = [found_in((10, 40, 100, 60)), found_in((80, 40, 180, 60)), found_in((160, 40, 220, 60))]
    assert merged(*tiles) == [[10, 40, 220, 60]]


def test_touching_objects_stay_apart() -> None:
    tiles = [found_in((50, 40, 90, 60), (90, 40, 100, 60)), found_in((80, 40, 90, 60), (90, 40, 140, 60)), found_in()]
    assert merged(*tiles) == [[50, 40, 90, 60], [90, 40, 140, 60]]


def test_classes_stay_apart() -> None:
    tiles = [found_in((60, 40, 100, 60, 0.9, 0)), found_in((80, 40, 130, 60, 0.9, 1)), found_in()]
    assert len(merged(*tiles)) == 2
