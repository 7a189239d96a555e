"""Task-aligned assignment: the specification's numbers, its edge cases, and no shape that depends on the data."""

from typing import Any

import pytest
import torch

from yoloyard.common.boxes import anchor_points, complete_iou
from yoloyard.losses import assign as module
from yoloyard.losses.assign import Assignment, Shapes, assign

# Published numbers for the case of `table`: anchor -> (box, target score), with boxes narrower than 16 px widened.
EXPECTED = {
    11: (0, 0.00469), 17: (0, 0.00417), 18: (0, 0.45876), 19: (0, 0.50474), 20: (0, 0.00560), 25: (0, 0.00469),
    26: (0, 0.50474), 27: (0, 0.54687), 28: (2, 0.02227), 29: (2, 0.00414), 34: (0, 0.00560), 35: (2, 0.05332),
    36: (2, 0.69166), 37: (2, 0.10211), 43: (1, 0.14022), 44: (2, 0.01177), 69: (0, 0.15757), 70: (2, 0.00547),
    73: (2, 0.00347), 74: (2, 0.01986),
}  # fmt: skip


# The same boxes where each may have one point at most, chosen from 7.
EXPECTED_OF_ONE = {27: (0, 0.54687), 36: (2, 0.69166), 43: (1, 0.14022)}
# Published numbers for a crowd, of the targets above zero.
CROWD = [[14, 16, 29, 34], [13, 16, 34, 37], [16, 11, 31, 32], [16, 13, 36, 36], [15, 13, 33, 30], [44, 45, 56, 57]]
CROWD_LABELS = [0, 1, 0, 0, 1, 1]
EXPECTED_OF_CROWD = {
    10: (2, 0.00207), 11: (2, 0.00203), 18: (2, 0.53402), 19: (3, 0.32463), 26: (1, 0.63405), 27: (3, 0.61647),
    34: (1, 0.00200), 35: (1, 0.00330), 45: (5, 0.02158), 46: (5, 0.04823), 53: (5, 0.14990), 54: (5, 0.24566),
    69: (3, 0.00069), 79: (5, 0.00003),
}  # fmt: skip
# The first box loses all its seven points. With ten to choose from, the point 80 would not be the fourth one's.
EXPECTED_OF_CROWD_OF_ONE = {
    18: (2, 0.53402), 26: (1, 0.63405), 27: (3, 0.61647), 54: (5, 0.24566), 80: (4, 0.00724)
}  # fmt: skip
ONE: dict[str, Any] = {"top_k": 7, "best_only": True}


def points_of(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = [(size // stride, size // stride) for stride in (8, 16, 32)]
    points, strides = anchor_points(sizes, (8, 16, 32), torch.device("cpu"))
    return points * strides, strides


def run(
    boxes: list[list[float]],
    labels: list[int],
    size: int = 64,
    pairs: int = 2**22,
    top_k: int = module.TOP_K,
    best_only: bool = False,
) -> Assignment:
    points, strides = points_of(size)
    predicted = torch.cat((points - 1.5 * strides, points + 1.5 * strides), dim=1)[None]
    anchors = torch.arange(len(points))
    first = 0.1 + 0.8 * (anchors % 7) / 6
    scores = torch.stack((first, 1 - first), dim=1)[None]
    xyxy = torch.tensor([boxes]).float().view(1, -1, 4)
    return assign(predicted, scores, points, xyxy, torch.tensor([labels]), pairs, top_k, best_only)


@pytest.mark.parametrize("pairs", [84, 84 * 2, 2**22])
def test_the_published_case_whatever_the_chunk(pairs: int) -> None:
    boxes: list[list[float]] = [[8, 8, 40, 40], [30, 30, 36, 50], [20, 22, 52, 48], [0, 0, 0, 0]]
    found = run(boxes, [0, 1, 0, -1], pairs=pairs)
    assert found.foreground.nonzero()[:, 1].tolist() == list(EXPECTED)
    for anchor, (box, score) in EXPECTED.items():
        assert found.target_scores[0, anchor] == pytest.approx(score, abs=6e-6)
        assert found.boxes_xyxy[0, anchor].tolist() == boxes[box]
        assert found.labels[0, anchor] == [0, 1, 0][box]
    assert found.target_scores.sum() == pytest.approx(3.251739, abs=1e-5)
    assert not found.target_scores[~found.foreground].any()


@pytest.mark.parametrize("pairs", [84, 84 * 4, 2**22])
@pytest.mark.parametrize(
    ("boxes", "labels", "selection", "expected", "total"),
    [
        ([[8, 8, 40, 40], [30, 30, 36, 50], [20, 22, 52, 48]], [0, 1, 0], ONE, EXPECTED_OF_ONE, 1.37876),
        (CROWD, CROWD_LABELS, {}, EXPECTED_OF_CROWD, 2.58466),
        (CROWD, CROWD_LABELS, ONE, EXPECTED_OF_CROWD_OF_ONE, 2.03744),
    ],
)
def test_the_published_cases_of_many_points_and_of_one(
    boxes: list[list[float]],
    labels: list[int],
    selection: dict[str, Any],
    expected: dict[int, tuple[int, float]],
    total: float,
    pairs: int,
) -> None:
    found = run(boxes, labels, pairs=pairs, **selection)
    learned = (found.target_scores[0] > 5e-6).nonzero().flatten().tolist()
    assert learned == list(expected)
    if selection:
        assert found.foreground[0].nonzero().flatten().tolist() == learned
    for anchor, (box, score) in expected.items():
        assert found.target_scores[0, anchor] == pytest.approx(score, abs=6e-6)
        assert found.boxes_xyxy[0, anchor].tolist() == boxes[box]
    assert found.target_scores.sum() == pytest.approx(total, abs=1e-5)


def test_of_points_that_suit_a_box_equally_the_first_has_it() -> None:
    found = run([[8.0, 8, 40, 40], [8.0, 8, 40, 40], [70, 70, 90, 90]], [0, 0, 0], **ONE)
    assert found.foreground.sum() == 1  # the second box has lost all its points to the first
    points, strides = points_of(64)
    predicted = torch.cat((points - 1.5 * strides, points + 1.5 * strides), dim=1)[None]
    even = assign(
        predicted,
        torch.full((1, 84, 1), 0.5),
        points,
        torch.tensor([[[16.0, 16, 48, 48]]]),
        torch.zeros(1, 1, dtype=torch.int64),
        **ONE,
    )
    assert even.foreground.nonzero()[:, 1].tolist() == [3 * 8 + 3]  # of four around the centre


def test_the_overlap_of_pairs_is_complete_iou() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(3, 40, 4, generator=generator) * 60
    boxes = torch.cat((corners[..., :2], corners[..., :2] + corners[..., 2:]), dim=-1)
    boxes[0, 0] = boxes[0, 1]
    boxes[0, 2, 2:] = boxes[0, 2, :2]  # of no size
    expected = complete_iou(boxes[:, :15, None], boxes[:, None]).clamp(min=0)
    shapes = Shapes.of(boxes.movedim(-1, 0))
    found = module.pairwise_overlap(shapes.part(slice(15), -1), shapes.part(slice(None), -2))
    assert torch.allclose(found, expected, atol=1e-6)


def test_no_box_in_an_image_or_in_the_whole_batch_means_background() -> None:
    padded = run([[0.0, 0, 0, 0]], [-1])
    nothing = run([], [])
    for found in (padded, nothing):
        assert not found.foreground.any()
        assert found.target_scores.sum() == 0


def test_of_two_boxes_on_one_cell_the_better_overlap_has_it() -> None:
    wide, exact = [10.0, 10, 38, 26], [8.0, 8, 32, 32]  # the second is what the cell at 20, 20 predicts
    found = run([wide, exact], [0, 0])
    cell = 2 * 8 + 2
    assert found.boxes_xyxy[0, cell].tolist() == exact


def test_a_box_outside_the_image_is_nobodys() -> None:
    assert not run([[100.0, 100, 120, 130]], [0]).foreground.any()


def test_a_box_of_one_pixel_is_found_by_its_neighbours() -> None:
    found = run([[20.0, 20, 21, 21]], [1])
    points, _ = points_of(64)
    assert found.foreground.any()
    assert (points[found.foreground[0]] - 20.5).abs().max() < 8


def test_a_box_larger_than_the_image_keeps_its_true_corners() -> None:
    box = [-50.0, -40, 150, 160]
    found = run([box], [0])
    assert found.foreground.sum() == module.TOP_K
    assert found.boxes_xyxy[found.foreground].unique(dim=0).tolist() == [box]
