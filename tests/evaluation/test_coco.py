"""The evaluator gives COCO's figures, whatever the order of images and boxes, also where there is nothing."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from evaluation_cases import detections, make_index, random_case
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yoloyard.common.structures import Detections
from yoloyard.data.index.index import Index
from yoloyard.evaluation.metrics.coco import evaluate

BOX = (10.0, 10.0, 50.0, 50.0)


def pycocotools_figures(index: Index, predictions: dict[int, Detections], max_det: int) -> tuple[list, np.ndarray]:
    """mAP, mAP50, mAP75, small, medium, large and the AP of each class by the reference implementation."""
    true_boxes: list[dict] = []
    found_boxes: list[dict] = []
    for image_id in range(len(index)):
        for box, label, ignore in zip(*index.annotations(image_id), strict=True):
            x1, y1, x2, y2 = box.astype(float).tolist()
            true_boxes.append(
                {
                    "id": len(true_boxes) + 1,
                    "image_id": image_id,
                    "category_id": int(label),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(ignore),
                }
            )
        found = predictions[image_id]
        rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
        # Equal scores have no order in COCO but that of arrival; this is the one that `evaluate` gives them.
        for (x1, y1, x2, y2), score, label in sorted(rows, key=lambda row: (-row[1], row[2], row[0])):
            row = {"image_id": image_id, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            found_boxes.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i, "height": 480, "width": 640} for i in range(len(index))],
            "categories": [{"id": c, "name": name} for c, name in enumerate(index.names)],
            "annotations": true_boxes,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found_boxes), "bbox")
        evaluation.params.maxDets = [1, 10, max_det]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # (10, 101, C, 4)

    def mean(part: np.ndarray) -> float:
        return part[part > -1].mean()

    all_sizes = precision[..., 0]
    figures = [mean(all_sizes), mean(all_sizes[0]), mean(all_sizes[5]), *(mean(precision[..., s]) for s in (1, 2, 3))]
    return figures, all_sizes.mean(axis=(0, 1))


@pytest.mark.parametrize("max_det", [20, 100, 300])
def test_equals_pycocotools(max_det: int) -> None:
    index, predictions = random_case(num_images=40, num_classes=4, seed=1)
    metrics = evaluate(index, predictions, max_det)
    expected, expected_by_class = pycocotools_figures(index, predictions, max_det)
    assert list(metrics.figures().values())[:6] == pytest.approx(expected, abs=1e-6)
    assert [row.map50_95 for row in metrics.classes[:3]] == pytest.approx(expected_by_class[:3].tolist(), abs=1e-6)
    assert expected_by_class[3] == -1
    assert (metrics.classes[3].boxes, metrics.classes[3].map50_95) == (0, 0.0)


def test_more_detections_than_cocos_hundred_count() -> None:
    index, predictions = random_case(num_images=2, num_classes=2, seed=2)
    assert evaluate(index, predictions, 300).map50 > evaluate(index, predictions, 100).map50


def test_order_of_images_and_boxes_does_not_matter() -> None:
    index, predictions = random_case(num_images=20, num_classes=3, seed=3)
    shuffled = {}
    for image_id in reversed(predictions):
        found = predictions[image_id]
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(image_id))
        shuffled[image_id] = Detections(found.boxes[order], found.scores[order], found.labels[order])
    first, second = evaluate(index, predictions), evaluate(index, shuffled)
    assert first.figures() == second.figures()
    assert first.classes == second.classes
    assert np.array_equal(first.confusion, second.confusion)


def test_recall_at_no_confidence_is_cocos() -> None:
    """Our matching and the COCO package's agree on which boxes are found at IoU 0.5."""
    index, predictions = random_case(num_images=40, num_classes=4, seed=4)
    metrics = evaluate(index, predictions)
    for label in range(3):
        recall = metrics.curves.recall[label, 0]
        reached = metrics.precision_at_recall[label] > 0  # the recall levels that COCO's curve reaches
        assert reached.sum() == int(np.floor(recall * 100 + 1e-9)) + 1


def test_perfect_predictions_score_one() -> None:
    index = make_index(["a", "b"], [([BOX, (60, 60, 99, 99)], [0, 1], [False, False]), ([], [], [])])
    metrics = evaluate(index, {0: detections((BOX, 0.9, 0), ((60, 60, 99, 99), 0.8, 1))})
    assert [metrics.map50_95, metrics.precision, metrics.recall, metrics.f1] == [1.0] * 4
    assert (metrics.background_images, metrics.background_false_positives) == (1, 0)


@pytest.mark.parametrize(
    ("images", "predictions"),
    [
        ([], {}),
        ([([], [], [])], {}),
        ([([], [], [])], {0: detections((BOX, 0.9, 0))}),
        ([([BOX], [0], [False])], {}),
        ([([BOX], [0], [False])], {0: detections()}),
        ([([BOX], [0], [True])], {0: detections((BOX, 0.9, 0))}),
    ],
    ids=["no images", "nothing", "no boxes", "no predictions", "empty predictions", "ignored boxes only"],
)
def test_nothing_to_count_gives_zeros(
    images: list, predictions: dict[int, Detections], capfd: pytest.CaptureFixture[str]
) -> None:
    metrics = evaluate(make_index(["a", "b"], images), predictions)
    assert set(metrics.figures().values()) == {0.0}
    json.dumps(metrics.figures(), allow_nan=False)
    assert capfd.readouterr() == ("", "")


def test_the_package_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    evaluate(*random_case(num_images=5, num_classes=2, seed=5))
    assert capfd.readouterr() == ("", "")


def test_an_unknown_image_is_refused() -> None:
    with pytest.raises(ValueError, match="not in the index"):
        evaluate(make_index(["a"], [([], [], [])]), {1: detections()})


@pytest.mark.parametrize("seed", range(6, 10))
def test_equals_pycocotools_where_crowds_and_sizes_compete(seed: int) -> None:
    """Boxes around COCO's limits of size, many of them crowds, found several times."""
    random = np.random.default_rng(seed)
    images, predictions = [], {}
    for image_id in range(12):
        corner = random.uniform(0, 60, (10, 2))
        boxes = np.concatenate((corner, corner + random.choice([30, 33, 94, 99], (10, 2))), axis=1)
        images.append((boxes, random.integers(0, 2, 10), random.random(10) < 0.3))
        found = boxes.repeat(3, axis=0) + random.normal(0, 4, (30, 4))
        rows = zip(found.tolist(), random.random(30).round(1).tolist(), random.integers(0, 2, 30).tolist(), strict=True)
        predictions[image_id] = detections(*rows)
    index = make_index(["a", "b"], images)
    expected, by_class = pycocotools_figures(index, predictions, 15)
    metrics = evaluate(index, predictions, 15)
    assert list(metrics.figures().values())[:6] == pytest.approx(expected, abs=1e-9)
    assert [row.map50_95 for row in metrics.classes] == pytest.approx(by_class.tolist(), abs=1e-9)
