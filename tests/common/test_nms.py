"""Suppression is exactly the greedy loop of the textbooks."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dense_suppression import suppress
from yoloyard.common.boxes import pairwise_iou


def greedy_loop(boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, iou: float, most: int) -> list[int]:
    kept: list[int] = []
    for i in scores.sort(descending=True, stable=True).indices.tolist():
        overlaps = pairwise_iou(boxes[kept], boxes[i][None])[labels[kept] == labels[i]]
        if (overlaps <= iou).all():
            kept.append(i)
    return kept[:most]


def random_boxes(generator: torch.Generator, count: int) -> torch.Tensor:
    centre = torch.rand(count, 2, generator=generator) * 60
    size = torch.rand(count, 2, generator=generator) * 40
    return torch.cat((centre, centre + size), dim=1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 60), iou=st.floats(0.05, 0.95), most=st.integers(1, 40))
def test_equals_the_greedy_loop_in_every_image_of_a_batch(seed: int, count: int, iou: float, most: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.stack([random_boxes(generator, count) for _ in range(2)])
    scores = torch.rand(2, count, 3, generator=generator)
    found = suppress(boxes, scores, conf=0.3, iou=iou, max_det=most, multi_label=True)
    for image, (found_boxes, found_scores, found_labels) in enumerate(found):
        points, labels = (scores[image] > 0.3).nonzero(as_tuple=True)
        values = scores[image][points, labels]
        expected = greedy_loop(boxes[image][points], values, labels, iou, most)
        assert torch.equal(found_scores, values[expected])
        assert torch.equal(found_labels, labels[expected])
        assert torch.equal(found_boxes, boxes[image][points][expected])


def test_a_point_gives_only_its_best_class_without_multi_label() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30]]])
    scores = torch.tensor([[[0.6, 0.9], [0.1, 0.2]]])
    [(_, found, labels)] = suppress(boxes, scores, conf=0.25, iou=0.5, max_det=10, multi_label=False)
    assert (found.tolist(), labels.tolist()) == ([scores[0, 0, 1].item()], [1])


def test_more_candidates_than_a_block_are_handled_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, scores = random_boxes(generator, 2500)[None], torch.rand(1, 2500, 1, generator=generator)
    [(_, found, _)] = suppress(boxes, scores, conf=0.0, iou=0.6, max_det=300, multi_label=False)
    expected = greedy_loop(boxes[0], scores[0, :, 0], torch.zeros(2500), 0.6, 300)
    assert torch.equal(found, scores[0, expected, 0])


def test_no_candidate_gives_empty_detections() -> None:
    [(boxes, scores, labels)] = suppress(
        torch.rand(1, 5, 4), torch.zeros(1, 5, 2), conf=0.1, iou=0.5, max_det=3, multi_label=True
    )
    assert boxes.shape == (0, 4)
    assert len(scores) == len(labels) == 0
