"""Assignment of YOLOv9: the specification's numbers, a plain search in random cases, no shape that depends on data."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from launches import Launches
from yoloyard.common.boxes import anchor_points, complete_iou
from yoloyard.losses.assign import EPS, TOP_K, Assignment
from yoloyard.losses.assign_in_reach import assign_in_reach, candidates

# Published numbers for the case of `table`: anchor -> (box, target score).
EXPECTED = {
    11: (0, 0.00469), 18: (0, 0.45876), 19: (0, 0.50474), 20: (0, 0.00560), 25: (0, 0.00469), 26: (0, 0.50474),
    27: (0, 0.54687), 28: (2, 0.02227), 29: (2, 0.00414), 34: (0, 0.00560), 35: (2, 0.05332), 36: (2, 0.69166),
    37: (2, 0.10211), 44: (2, 0.01177), 68: (0, 0.00494), 69: (0, 0.15757), 70: (2, 0.00547), 73: (2, 0.00347),
    74: (2, 0.01986),
}  # fmt: skip
TABLE: list[list[float]] = [[8, 8, 40, 40], [30, 30, 36, 50], [20, 22, 52, 48], [0, 0, 0, 0]]


def points_of(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Anchor points and strides in pixels, and how far a point reaches."""
    points, strides = anchor_points([(size // s, size // s) for s in (8, 16, 32)], (8, 16, 32), torch.device("cpu"))
    return points * strides, strides, 14.99 * strides.squeeze(1)


def table_predictions(size: int = 64) -> tuple[Tensor, Tensor]:
    """Boxes (1, P, 4), each three cells wide, and scores (1, P, 2)."""
    points, strides, _ = points_of(size)
    first = 0.1 + 0.8 * (torch.arange(len(points)) % 7) / 6
    return torch.cat((points - 1.5 * strides, points + 1.5 * strides), dim=1)[None], torch.stack((first, 1 - first), 1)[
        None
    ]


def run(boxes: list[list[float]], labels: list[int], pairs: int = 2**22) -> Assignment:
    points, _, reach = points_of(64)
    xyxy = torch.tensor([boxes]).float().view(1, -1, 4)
    return assign_in_reach(*table_predictions(), points, reach, xyxy, torch.tensor([labels]).long(), pairs)


@pytest.mark.parametrize("pairs", [84, 84 * 2, 2**22])
def test_the_published_case_whatever_the_chunk(pairs: int) -> None:
    found = run(TABLE, [0, 1, 0, -1], pairs)
    assert found.foreground.nonzero()[:, 1].tolist() == list(EXPECTED)
    for anchor, (box, score) in EXPECTED.items():
        assert found.target_scores[0, anchor] == pytest.approx(score, abs=6e-6)
        assert found.boxes_xyxy[0, anchor].tolist() == TABLE[box]
        assert found.labels[0, anchor] == [0, 1, 0][box]
    assert found.target_scores.sum() == pytest.approx(3.112287, abs=1e-6)


@pytest.mark.parametrize("box", [[30.0, 30, 35, 50], [37.0, 45, 43, 51]])
def test_a_box_without_a_candidate_takes_its_best_point_wherever_it_is(box: list[float]) -> None:
    points, _, reach = points_of(64)
    low, high = torch.tensor(box).view(2, 2, 1, 1, 1)
    inside = candidates(low, high, points, reach)[0, 0]
    predicted, scores = table_predictions()
    overlap = complete_iou(torch.tensor(box), predicted[0]).clamp(min=0)
    alignment = overlap**6 * scores[0, :, 1] ** 0.5
    found = run([box], [1])
    assert not inside.any()
    best = int(alignment.argmax())
    assert found.foreground[0].nonzero().tolist() == [[best]]
    expected = alignment[best] / (alignment[best] + EPS) * overlap[best]
    assert found.target_scores[0, best].item() == pytest.approx(expected.item(), rel=1e-3)


def test_a_box_that_overlaps_nothing_that_is_predicted_gets_no_point() -> None:
    assert not run([[300.0, 300, 310, 310]], [0]).foreground.any()


def test_a_point_that_several_boxes_select_goes_to_the_best_overlap_among_these() -> None:
    """All points predict the third box, whose own choice is elsewhere: it has no say where the others choose."""
    points, _, reach = points_of(64)
    scores = torch.full((1, len(points), 2), 1e-4)
    scores[0, 16:26, 0], scores[0, 32:42, 1] = 1.0, 1.0
    boxes = torch.tensor([[[0.0, 0, 64, 50], [0.0, 0, 64, 56], [0.0, 0, 64, 64]]])
    predicted = boxes[:, 2:].expand(1, len(points), 4)
    found = assign_in_reach(predicted, scores, points, reach, boxes, torch.tensor([[0, 0, 1]]))
    owners = {tuple(range(16, 26)): boxes[0, 1], tuple(range(32, 42)): boxes[0, 2]}
    assert found.foreground[0].nonzero().flatten().tolist() == [point for some in owners for point in some]
    for some, box in owners.items():
        assert (found.boxes_xyxy[0, list(some)] == box).all()


@pytest.mark.parametrize(
    ("box", "counts"),
    [((10, 10, 310, 300), [0, 144, 90]), ((100, 100, 230, 150), [91, 24, 8]), ((96, 96, 104, 104), [1, 1, 0])],
)
def test_bins_must_reach_the_farthest_side(box: tuple[int, ...], counts: list[int]) -> None:
    points, strides, reach = points_of(320)
    low, high = torch.tensor(box).float().view(2, 2, 1, 1, 1)
    inside = candidates(low, high, points, reach)[0, 0]
    assert [int(inside[strides[:, 0] == stride].sum()) for stride in (8, 16, 32)] == counts


@pytest.mark.parametrize(("boxes", "labels"), [([[0, 0, 0, 0]], [-1]), ([], []), ([[8, 8, 40, 40]], [-1])])
def test_padding_and_no_box_at_all_mean_background(boxes: list[list[float]], labels: list[int]) -> None:
    found = run(boxes, labels)
    assert not found.foreground.any()
    assert found.target_scores.sum() == 0


def by_search(
    predicted: Tensor, scores: Tensor, boxes: Tensor, labels: Tensor, size: int
) -> dict[int, tuple[int, float]]:
    """What each point of an image learns, box by box: point -> (box, target score)."""
    points, strides, _ = points_of(size)
    overlap = complete_iou(boxes[:, None], predicted[None]).clamp(0, 1)  # (M, P)
    alignment = overlap**6 * scores[:, labels].T ** 0.5
    selectors: dict[int, list[int]] = {}
    for box, (left, top, right, bottom) in enumerate(boxes):
        if labels[box] < 0:
            continue
        x, y = points.T
        sides = torch.stack((x - left, y - top, right - x, bottom - y)) / strides.T
        candidate = (sides.amin(dim=0) >= 0) & (sides.amax(dim=0) <= 14.99)
        top_points = (alignment[box] * candidate).topk(TOP_K)
        chosen = top_points.indices[top_points.values > 0].tolist()
        if not chosen and alignment[box].max() > 0:
            chosen = [int(alignment[box].argmax())]
        for point in chosen:
            selectors.setdefault(point, []).append(box)
    owner = {point: max(some, key=lambda box: float(overlap[box, point])) for point, some in selectors.items()}
    found = {}
    for point, box in owner.items():
        own = [other for other, its_box in owner.items() if its_box == box]
        share = alignment[box, point] / (alignment[box, own].max() + EPS)
        found[point] = (box, float(share * overlap[box, own].max()))
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 12), largest=st.sampled_from([0.1, 0.4, 1.2]))
def test_random_cases_are_assigned_as_by_a_plain_search(seed: int, count: int, largest: float) -> None:
    generator, size = torch.Generator().manual_seed(seed), 128
    points, strides, reach = points_of(size)
    sides = torch.rand(len(points), 4, generator=generator) * 6 * strides
    predicted = torch.cat((points - sides[:, :2], points + sides[:, 2:]), dim=1)
    scores = torch.rand(len(points), 3, generator=generator)
    centres = torch.rand(count, 2, generator=generator) * size
    sizes = torch.rand(count, 2, generator=generator) * size * largest + 1
    boxes = torch.cat((centres - sizes / 2, centres + sizes / 2), dim=1)
    labels = torch.randint(-1, 3, (count,), generator=generator)
    found = assign_in_reach(predicted[None], scores[None], points, reach, boxes[None], labels[None], 3 * len(points))
    expected = by_search(predicted, scores, boxes, labels, size)
    assert found.foreground[0].nonzero().flatten().tolist() == sorted(expected)
    for point, (box, score) in expected.items():
        assert torch.equal(found.boxes_xyxy[0, point], boxes[box])
        assert found.labels[0, point] == labels[box]
        assert float(found.target_scores[0, point]) == pytest.approx(score, rel=1e-3, abs=1e-5)


def test_nothing_is_read_from_the_device() -> None:
    points, _, reach = points_of(64)
    predicted, scores = torch.empty(2, len(points), 4, device="meta"), torch.empty(2, len(points), 3, device="meta")
    boxes, labels = torch.empty(2, 7, 4, device="meta"), torch.empty(2, 7, dtype=torch.int64, device="meta")
    with Launches(forbid_reads=True):
        points, reach = points.to("meta"), reach.to("meta")
        found = assign_in_reach(predicted, scores, points, reach, boxes, labels, len(points) * 4)
    assert found.boxes_xyxy.shape == (2, len(points), 4)
