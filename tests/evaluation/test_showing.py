"""The pair of confidence and overlap that a user is shown by: how it is chosen, kept in a file, used and overruled."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_cases import detections, make_index, random_case

from yoloyard.commands.model import Model
from yoloyard.common.nms import suppress_found
from yoloyard.common.structures import Detections
from yoloyard.config.settings import EvaluationConfig
from yoloyard.evaluation.metrics.coco import Metrics, evaluate
from yoloyard.evaluation.metrics.matching import gather_found
from yoloyard.evaluation.metrics.showing import IOUS, MIN_CONF, TOLERANCE, Showing, shown, shown_rows
from yoloyard.models import registry
from yoloyard.models.weights import save_weights

BOX, ELSEWHERE = (0.0, 0.0, 100.0, 100.0), (300.0, 300.0, 400.0, 400.0)


def moved(by: float, box: Sequence[float] = BOX) -> tuple[float, ...]:
    """The box moved to the right by pixels: 25 give an IoU of 0.6, 29 of 0.55, 40 of 0.43."""
    return (box[0] + by, box[1], box[2] + by, box[3])


def images_of(true_boxes: Sequence[Sequence[float]], found: Detections, num_images: int = 5) -> Metrics:
    """Metrics of so many equal images of one class."""
    index = make_index(["a"], [(true_boxes, [0] * len(true_boxes), [False] * len(true_boxes))] * num_images)
    return evaluate(index, dict.fromkeys(range(num_images), found))


@pytest.mark.parametrize(("by", "highest"), [(20.0, 0.65), (29.0, 0.5), (40.0, 0.4)])
def test_duplicates_ask_for_a_lower_overlap(by: float, highest: float) -> None:
    metrics = images_of([BOX], detections((BOX, 0.9, 0), (moved(by), 0.89999, 0)))
    assert metrics.showing.iou <= highest
    assert metrics.image_counts.false.tolist() == [0] * 5


@pytest.mark.parametrize(("by", "lowest"), [(25.0, 0.6), (29.0, 0.55), (40.0, 0.45)])
def test_true_neighbours_ask_for_a_higher_one(by: float, lowest: float) -> None:
    metrics = images_of([BOX, moved(by)], detections((BOX, 0.9, 0), (moved(by), 0.8, 0)))
    assert metrics.showing.iou >= lowest
    assert metrics.image_counts.correct.tolist() == [2] * 5


def test_more_duplicates_than_neighbours_decide() -> None:
    index = make_index(["a"], [([BOX], [0], [False])] * 3 + [([BOX, moved(25)], [0, 0], [False] * 2)])
    both = detections((BOX, 0.9, 0), (moved(25), 0.9, 0))
    assert evaluate(index, dict.fromkeys(range(4), both)).showing.iou < 0.6


def test_the_confidence_lies_in_the_middle_between_right_and_wrong() -> None:
    metrics = images_of([BOX], detections((BOX, 0.8, 0), (ELSEWHERE, 0.4, 0)))
    assert metrics.showing.conf == pytest.approx(0.6, abs=0.002)
    assert metrics.showing.iou == min(IOUS)  # the overlap does not matter here


def test_classes_do_not_suppress_each_other_and_count_alike() -> None:
    index = make_index(["a", "b", "never"], [([BOX, moved(5)], [0, 1], [False, False])] * 2)
    metrics = evaluate(index, dict.fromkeys(range(2), detections((BOX, 0.9, 0), (moved(5), 0.7, 1))))
    assert metrics.showing.conf < 0.7
    assert metrics.image_counts.correct.tolist() == [2, 2]


@pytest.mark.parametrize(
    "found",
    [detections(), detections((ELSEWHERE, 0.9, 0)), detections((BOX, MIN_CONF / 2, 0))],
    ids=["nothing", "nothing right", "nothing that is shown"],
)
def test_where_nothing_is_found_the_default_is_taken(found: Detections) -> None:
    assert images_of([BOX], found).showing == Showing()


def test_without_a_label_the_default_is_taken() -> None:
    assert images_of([], detections((BOX, 0.9, 0))).showing == Showing()


def test_what_lies_in_an_ignored_region_does_not_count() -> None:
    index = make_index(["a"], [([BOX, ELSEWHERE], [0, 0], [False, True])] * 2)
    pile = detections((ELSEWHERE, 0.9, 0), (BOX, 0.5, 0), (moved(10, ELSEWHERE), 0.4, 0))
    assert evaluate(index, dict.fromkeys(range(2), pile)).showing.conf < 0.5


@pytest.mark.parametrize("seed", range(5))
def test_what_is_counted_is_what_is_drawn_and_what_suppression_keeps(seed: int) -> None:
    index, predictions = random_case(num_images=12, num_classes=4, seed=seed)
    random = torch.Generator().manual_seed(seed)
    for one in predictions.values():  # without equal scores, so that there is one order
        one.scores = torch.randperm(len(one), generator=random) / max(len(one), 1)
    found = gather_found(predictions, len(index))
    for iou in (0.3, *IOUS):
        showing = Showing(0.25, iou)
        rows = shown_rows(found, showing)
        assert 0 < rows.sum() < (found.scores > 0.25).sum()
        drawn = {image: shown(one, showing) for image, one in predictions.items()}
        flat = gather_found(drawn, len(index))
        assert np.array_equal(found.boxes_xyxy[rows], flat.boxes_xyxy)
        assert np.array_equal(found.scores[rows], flat.scores)
        for image, one in predictions.items():
            sure = one.scores > 0.25
            parts = (one.boxes[sure], one.scores[sure], one.labels[sure])
            [kept] = suppress_found(1, torch.zeros_like(parts[2]), *parts, iou, max_det=1000)
            assert torch.equal(kept[0], drawn[image].boxes)
            assert torch.equal(kept[2], drawn[image].labels)


def test_no_other_pair_is_clearly_better() -> None:
    index, predictions = random_case(num_images=30, num_classes=3, seed=1)
    chosen = evaluate(index, predictions).showing

    def f1(showing: Showing) -> float:
        return evaluate(index, {image: shown(one, showing) for image, one in predictions.items()}).f1

    others = [Showing(conf, iou) for conf in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8) for iou in IOUS]
    assert f1(chosen) >= max(map(f1, others)) - TOLERANCE
    assert f1(chosen) > min(map(f1, others)) + TOLERANCE


def test_nothing_is_shown_that_validation_did_not_look_at() -> None:
    assert Showing(0.2, 0.6).within(EvaluationConfig(conf=0.3, iou=0.5)) == Showing(0.3, 0.5)
    assert Showing(0.2, 0.6).within(EvaluationConfig()) == Showing(0.2, 0.6)


KEPT = {"conf": 0.31, "iou": 0.45}
SCORING = {"conf": 0.001, "iou": 0.7, "max_det": 200, "batch": 4, "precision": "float32"}


@pytest.mark.parametrize(
    ("metadata", "asked", "expected"),
    [
        ({"showing": KEPT, "evaluation": SCORING}, {}, (0.31, 0.45, 200)),
        ({"showing": KEPT, "evaluation": SCORING}, {"conf": 0.6}, (0.6, 0.45, 200)),
        ({"showing": KEPT, "evaluation": SCORING}, {"iou": 0.8, "max_det": 7}, (0.31, 0.8, 7)),
        ({"showing": KEPT, "evaluation": SCORING}, {"conf": 0.0, "iou": 0.0}, (0.0, 0.0, 200)),
        ({"evaluation": SCORING}, {}, (Showing.conf, Showing.iou, 200)),  # of an older version
        (
            {"showing": {}, "evaluation": SCORING},
            {},
            (Showing.conf, Showing.iou, 200),
        ),  # not validated
        ({}, {}, (Showing.conf, Showing.iou, 300)),  # of another project
    ],
)
def test_a_model_shows_by_the_pair_of_its_file_unless_told_otherwise(
    tmp_path: Path, metadata: dict[str, Any], asked: dict[str, Any], expected: tuple[float, float, int]
) -> None:
    detector = registry.build("yolov5n", num_classes=2)
    model = {"model": "yolov5n", "model_arguments": {"num_classes": 2}, "names": ["a", "b"]}
    save_weights(tmp_path / "best.safetensors", detector.state_dict(), model | metadata)
    settings = Model(tmp_path / "best.safetensors", "cpu", imgsz=64, **asked).settings
    assert (settings.conf, settings.iou, settings.max_det) == expected


def test_shown_keeps_an_empty_image() -> None:
    assert len(shown(detections(), Showing())) == 0
    assert shown(detections((BOX, 0.9, 0)), Showing()).labels.dtype == torch.int64
