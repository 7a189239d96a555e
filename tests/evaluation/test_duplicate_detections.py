"""What is counted of one path: duplicates, the recall of what is shown, and how sure right boxes are."""

import numpy as np
import pytest
import torch
from evaluation_cases import detections, make_index, random_case

from yoloyard.common.nms import KEEPS_ALL
from yoloyard.common.structures import Detections
from yoloyard.evaluation.metrics.coco import evaluate
from yoloyard.evaluation.metrics.duplicates import DUPLICATE_IOU, duplicate_rows
from yoloyard.evaluation.metrics.matching import gather_found
from yoloyard.evaluation.metrics.showing import Showing

BOX, NEAR, ELSEWHERE = (0.0, 0.0, 100.0, 100.0), (10.0, 0.0, 110.0, 100.0), (300.0, 300.0, 400.0, 400.0)
ALL_ABOVE_HALF = Showing(0.5, KEEPS_ALL)


def repeated(found: Detections, seed: int) -> Detections:
    """Each box three times, moved by up to a few pixels, with scores of its own."""
    random = torch.Generator().manual_seed(seed)
    boxes = found.boxes.repeat(3, 1)
    boxes += 6 * torch.rand(boxes.shape, generator=random)
    scores = torch.rand(len(boxes), generator=random).round(decimals=1)  # many are equal
    return Detections(boxes, scores, found.labels.repeat(3))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """IoU of two boxes (4,) xyxy."""
    sides = np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0)
    areas = np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])
    return float(np.prod(sides) / (areas - np.prod(sides)))


@pytest.mark.parametrize("conf", [0.0, 0.45])
def test_duplicates_are_those_of_a_loop_over_all_pairs(conf: float) -> None:
    _, predictions = random_case(num_images=12, num_classes=3, seed=8)
    del predictions[1]  # 300 boxes
    found = gather_found({image: repeated(each, image) for image, each in predictions.items()}, 12)
    rows = duplicate_rows(found, found.scores > conf)
    expected = [
        found.scores[later] > conf
        and any(
            found.images[better] == found.images[later]
            and found.labels[better] == found.labels[later]
            and overlap(found.boxes_xyxy[better], found.boxes_xyxy[later]) > DUPLICATE_IOU
            for better in range(found.starts[found.images[later]], later)  # an earlier row has no lower score
        )
        for later in range(len(found.scores))
    ]
    assert rows.tolist() == expected
    assert 20 < rows.sum() < len(rows) / 2


@pytest.mark.parametrize(
    ("second", "score", "label", "count"),
    [(NEAR, 0.8, 0, 0.5), (NEAR, 0.9, 0, 0.5), (NEAR, 0.5, 0, 0), (NEAR, 0.8, 1, 0), (ELSEWHERE, 0.8, 0, 0)],
    ids=["another near it", "with an equal score", "that is not shown", "of another class", "elsewhere"],
)
def test_a_box_may_be_a_duplicate(second: tuple[float, ...], score: float, label: int, count: float) -> None:
    index = make_index(["a", "b"], [([BOX], [0], [False])] * 2)
    found = detections((BOX, 0.9, 0), (second, score, label))
    assert evaluate(index, {0: found}, showing=ALL_ABOVE_HALF, suppression="off").duplicates == count


def test_suppression_for_showing_leaves_no_duplicates() -> None:
    index = make_index(["a"], [([BOX], [0], [False])])
    found = {0: detections((BOX, 0.9, 0), (NEAR, 0.8, 0))}
    assert evaluate(index, found, showing=Showing(0.5, 0.7)).duplicates == 0
    metrics = evaluate(index, found, suppression="off")  # the best pair there is without suppression
    assert (metrics.showing.iou, metrics.duplicates) == (KEEPS_ALL, 0)
    assert 0.8 <= metrics.showing.conf < 0.9


def test_recall_counts_what_is_shown_and_means_over_classes() -> None:
    index = make_index(["a", "b", "c"], [([BOX, ELSEWHERE, ELSEWHERE], [0, 0, 1], [False] * 3)])
    found = {0: detections((BOX, 0.9, 0), (ELSEWHERE, 0.3, 0), (ELSEWHERE, 0.6, 1))}
    assert evaluate(index, found, showing=ALL_ABOVE_HALF, suppression="off").shown_recall == (0.5 + 1) / 2
    assert evaluate(index, {}, showing=ALL_ABOVE_HALF).shown_recall == 0


def test_the_median_score_is_that_of_right_boxes() -> None:
    index = make_index(["a"], [([BOX, ELSEWHERE], [0, 0], [False, False])])
    found = {0: detections((BOX, 0.5, 0), (NEAR, 0.4, 0), (ELSEWHERE, 0.25, 0), ((200, 0, 250, 50), 0.9, 0))}
    assert evaluate(index, found, suppression="off").median_score == pytest.approx((0.5 + 0.25) / 2)
    assert evaluate(index, {0: detections(((200, 0, 250, 50), 0.9, 0))}).median_score == 0


def test_an_empty_set_has_no_duplicates() -> None:
    assert np.array_equal(duplicate_rows(gather_found({}, 2), np.zeros(0, bool)), np.zeros(0, bool))
