"""Task-aligned assignment: the specification's numbers, its edge cases, and no shape that depends on the data."""

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


def points_of(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = [(size // stride, size // stride) for stride in (8, 16, 32)]
    points, strides = anchor_points(sizes, (8, 16, 32), torch.device("cpu"))
    return points * strides, strides


def run(boxes: list[list[float]], labels: list[int], size: int = 64, pairs: int = 2**22) -> Assignment:
    points, strides = points_of(size)
    predicted = torch.cat((points - 1.5 * strides, points + 1.5 * strides), dim=1)[None]
    anchors = torch.arange(len(points))
    first = 0.1 + 0.8 * (anchors % 7) / 6
    scores = torch.stack((first, 1 - first), dim=1)[None]
    xyxy = torch.tensor([boxes]).float().view(1, -1, 4)
    return assign(predicted, scores, points, xyxy, torch.tensor([labels]), pairs)


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
