"""Precision, recall, F1, confusions and mistakes on cases that can be counted by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
from evaluation_cases import detections, make_index, random_case
from hypothesis import given
from hypothesis import strategies as st

from yoloyard.common.structures import Detections
from yoloyard.evaluation.metrics.coco import Metrics, evaluate
from yoloyard.evaluation.metrics.matching import Pairs, match_greedily
from yoloyard.evaluation.metrics.showing import Showing

# Three places that don't touch; `shifted` overlaps the box in the same place by IoU 2/3, `far` by 1/3.
A, B, C = (0.0, 0.0, 100.0, 100.0), (200.0, 0.0, 300.0, 100.0), (400.0, 0.0, 500.0, 100.0)
SHOWING = Showing(0.25, 1.0)  # where confusions and mistakes are counted here; nothing is suppressed


def shifted(box: Sequence[float], by: float = 20.0) -> tuple[float, ...]:
    return (box[0] + by, box[1], box[2] + by, box[3])


def far(box: Sequence[float]) -> tuple[float, ...]:
    return shifted(box, 50.0)


def one_image(
    true_boxes: Sequence[tuple], found: Detections, ignore: Sequence[bool] | None = None, names: str = "ab"
) -> Metrics:
    """Metrics of one image; `true_boxes` are (xyxy, label) rows."""
    boxes, labels = [row[0] for row in true_boxes], [row[1] for row in true_boxes]
    index = make_index(tuple(names), [(boxes, labels, ignore or [False] * len(boxes))])
    return evaluate(index, {0: found}, showing=SHOWING)


def test_curves_of_one_class_counted_by_hand() -> None:
    # By score: 0.9 right, 0.7 wrong, 0.5 right; the third box is never found.
    found = detections((A, 0.9, 0), (far(A), 0.7, 0), (shifted(B), 0.5, 0))
    metrics = one_image([(A, 0), (B, 0), (C, 0)], found, names="a")
    at = [np.searchsorted(metrics.curves.confidences, confidence) for confidence in (0.4, 0.6, 0.8, 0.95)]
    assert metrics.curves.precision[0, at[:3]].tolist() == pytest.approx([2 / 3, 1 / 2, 1])
    assert np.isnan(metrics.curves.precision[0, at[3]])
    assert metrics.curves.recall[0, at].tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3, 0])
    assert metrics.curves.f1[0, at].tolist() == pytest.approx([4 / 6, 2 / 5, 2 / 4, 0])
    # The best F1, 2/3, holds from 0 to 0.5; the lowest such confidence is taken.
    assert (metrics.confidence, metrics.f1) == (0.0, pytest.approx(2 / 3))
    assert (metrics.precision, metrics.recall) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_figures_are_means_over_classes_with_boxes() -> None:
    found = detections((A, 0.9, 0), (C, 0.8, 2))
    metrics = one_image([(A, 0), (B, 1)], found, names="abc")
    rows = [(row.boxes, row.images, row.precision, row.recall, row.f1) for row in metrics.classes]
    assert rows == [(1, 1, 1.0, 1.0, 1.0), (1, 1, 0.0, 0.0, 0.0), (0, 0, 0.0, 0.0, 0.0)]
    assert (metrics.precision, metrics.recall, metrics.f1) == (0.5, 0.5, 0.5)


def test_the_best_confidence_is_where_mean_f1_peaks() -> None:
    found = detections((A, 0.9, 0), (B, 0.6, 0), (far(C), 0.4, 0))
    metrics = one_image([(A, 0), (B, 0)], found)
    assert metrics.confidence == pytest.approx(0.401)
    assert metrics.f1 == 1.0


def test_a_true_box_is_found_once() -> None:
    metrics = one_image([(A, 0)], detections((shifted(A), 0.9, 0), (A, 0.8, 0)), names="a")
    assert (metrics.image_counts.correct.tolist(), metrics.image_counts.false.tolist()) == ([1], [1])


def test_a_second_choice_is_taken() -> None:
    # Both found boxes overlap both true ones; the second found box likes best what the first has taken.
    near = shifted(A, 10.0)
    found = detections((A, 0.9, 0), (shifted(A, 2.0), 0.8, 0))
    assert one_image([(A, 0), (near, 0)], found, names="a").image_counts.correct.tolist() == [2]


@given(st.data())
def test_matching_in_rounds_is_the_greedy_loop(data: st.DataObject) -> None:
    num_found, num_truth = 7, 5
    overlaps = np.array(
        data.draw(
            st.lists(
                st.sampled_from([0.0, 0.5, 0.6, 0.7, 0.8]),
                min_size=num_found * num_truth,
                max_size=num_found * num_truth,
            )
        )
    ).reshape(num_found, num_truth)
    expected = np.full(num_found, -1)
    for row in range(num_found):
        free = [column for column in range(num_truth) if overlaps[row, column] > 0 and column not in expected]
        if free:
            expected[row] = max(free, key=lambda column: (overlaps[row, column], column))
    found, truth = np.nonzero(overlaps)
    pairs = Pairs(found, truth, overlaps[found, truth])
    assert match_greedily(pairs, num_found, num_truth).tolist() == expected.tolist()


def test_confusion_matrix_counted_by_hand() -> None:
    found = detections(
        (A, 0.9, 0),  # right
        (shifted(B), 0.8, 1),  # an "a" called "b"
        (far(C), 0.7, 1),  # too far from any box
        (C, 0.24, 1),  # below the confidence that counts: C is missed
    )
    metrics = one_image([(A, 0), (B, 0), (C, 1)], found)
    assert metrics.confusion.tolist() == [
        [1, 1, 0],
        [0, 0, 1],
        [0, 1, 0],
    ]


def test_of_two_equal_overlaps_the_confusion_matrix_takes_the_right_class() -> None:
    metrics = one_image([(A, 0), (A, 1)], detections((A, 0.9, 0), (A, 0.8, 1)))
    assert metrics.confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_ignored_boxes_count_for_nothing() -> None:
    # Two found boxes lie in the ignored one; neither is right or wrong, and nobody misses it.
    inside = [(200.0, 0.0, 240.0, 40.0), (250.0, 50.0, 290.0, 90.0)]
    found = detections((A, 0.9, 0), (inside[0], 0.8, 0), (inside[1], 0.7, 0))
    metrics = one_image([(A, 0), (B, 0)], found, ignore=[False, True], names="a")
    assert list(metrics.figures().values())[:3] == [1.0, 1.0, 1.0]
    assert (metrics.precision, metrics.recall, metrics.classes[0].boxes) == (1.0, 1.0, 1)
    assert metrics.confusion.tolist() == [[1, 0], [0, 0]]
    counts = metrics.image_counts
    assert (counts.correct.tolist(), counts.false.tolist(), counts.missed.tolist()) == ([1], [0], [0])


def test_a_real_box_is_preferred_to_an_ignored_one() -> None:
    metrics = one_image([(A, 0), (shifted(A), 0)], detections((A, 0.9, 0)), ignore=[True, False], names="a")
    assert metrics.image_counts.correct.tolist() == [1]


def test_false_positives_on_background() -> None:
    index = make_index(
        "a", [([A], [0], [False]), ([], [], []), ([], [], []), ([B], [0], [True])]
    )  # images 1 and 2 are background; image 3 is not: something may be there
    predictions = {
        0: detections((B, 0.9, 0)),
        1: detections((A, 0.9, 0), (B, 0.25, 0), (C, 0.2, 0)),
        3: detections((C, 0.9, 0)),
    }
    metrics = evaluate(index, predictions, showing=Showing(0.24))
    assert (metrics.background_images, metrics.background_false_positives) == (2, 2)


def test_mistakes_of_each_image() -> None:
    index = make_index("a", [([A, B], [0, 0], [False, False]), ([], [], [])])
    predictions = {0: detections((A, 0.9, 0), (C, 0.8, 0), (B, 0.1, 0)), 1: detections((A, 0.3, 0))}
    metrics = evaluate(index, predictions, showing=SHOWING)
    counts = metrics.image_counts
    assert (counts.correct.tolist(), counts.false.tolist(), counts.missed.tolist()) == ([1, 0], [1, 1], [1, 0])


def test_right_boxes_of_curves_and_images_agree_with_the_confusion_matrix_total() -> None:
    metrics = evaluate(*random_case(num_images=30, num_classes=4, seed=6))
    boxes = sum(row.boxes for row in metrics.classes)
    assert metrics.confusion[:-1].sum() == boxes
    assert (metrics.image_counts.correct + metrics.image_counts.missed).sum() == boxes
