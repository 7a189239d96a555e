"""The matching report counts just the places that the losses have for each box."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from yoloyard.common.boxes import anchor_points
from yoloyard.common.image_size import ImageSize, shape_of
from yoloyard.config.settings import TrainConfig
from yoloyard.data.index.index import Index, Paths, Texts
from yoloyard.data.index.tiled import input_boxes
from yoloyard.data.loading import batches
from yoloyard.data.loading.batches import ValidationBatches
from yoloyard.losses import build_criterion
from yoloyard.losses.assign import assign
from yoloyard.losses.assign_in_reach import assign_in_reach
from yoloyard.losses.task_aligned import MAX_DISTANCE
from yoloyard.models import registry
from yoloyard.models.heads import Head
from yoloyard.training.setup.matching_report import matching_report, places_of

SHAPE = (128, 192)


def boxes_of_all_sizes() -> Tensor:
    """(n, 4) in an input of SHAPE: sides from below a pixel to all of it, and some whose edges are points of a map."""
    random = np.random.default_rng(3)
    sides = np.exp(random.uniform(np.log(0.3), np.log(300), (150, 2)))
    centres = random.uniform(0, 1, (150, 2)) * SHAPE[::-1]
    corners = np.concatenate((centres - sides / 2, centres + sides / 2), axis=1)
    on_points = np.array([[4, 4, 12, 12], [4, 4, 20, 12.5], [2, 2, 4, 4], [16, 16, 48, 48], [0, 0, 192, 128]])
    limits = [SHAPE[1], SHAPE[0]] * 2
    return torch.tensor(np.concatenate((corners.clip(0, limits), on_points)), dtype=torch.float32)


def head_of(model: str) -> Head:
    return registry.build(model, num_classes=1).head


def points_of(head: Head) -> tuple[Tensor, Tensor]:
    points, strides = anchor_points(
        [(SHAPE[0] // s, SHAPE[1] // s) for s in head.strides], head.strides, torch.device("cpu")
    )
    return points * strides, strides


@pytest.mark.parametrize("model", ["yolo11n", "yolov8n-p2", "yolo26n"])
def test_points_are_those_that_the_assigner_takes_where_it_does_not_widen(model: str) -> None:
    head, boxes = head_of(model), boxes_of_all_sizes()
    points, _ = points_of(head)
    images = len(boxes)  # a box each
    predicted = torch.zeros(images, len(points), 4)
    scores = torch.ones(images, len(points), 1)
    labels = torch.zeros(images, 1, dtype=torch.int64)
    found = assign(predicted, scores, points, boxes[:, None], labels, top_k=len(points), minimum_side=0)
    places = places_of(boxes, head, SHAPE, 4.0)
    assert torch.equal(places, found.foreground.sum(dim=1))
    assert {0, 1} < set(places.tolist())
    assert places.max() == len(points)


def test_points_in_reach_are_those_that_yolov9_takes() -> None:
    head, boxes = head_of("yolov9t"), boxes_of_all_sizes()
    points, strides = points_of(head)
    predicted = boxes[:, None].expand(-1, len(points), -1).contiguous()  # each fits, so that 10 are taken
    scores, labels = torch.ones(len(boxes), len(points), 1), torch.zeros(len(boxes), 1, dtype=torch.int64)
    reach = MAX_DISTANCE * strides.squeeze(1)
    found = assign_in_reach(predicted, scores, points, reach, boxes[:, None], labels).foreground.sum(dim=1)
    places = places_of(boxes, head, SHAPE, 4.0)
    assert torch.equal(found, places.clamp(1, 10))  # one that has none gets the point that suits it best
    finest = places_of(boxes, head_of("yolo11n"), SHAPE, 4.0)
    assert (places < finest).any()  # a side is out of reach


@pytest.mark.parametrize("model", ["yolov5n", "yolov5n6"])
def test_anchors_are_those_that_yolov5_learns_by(model: str) -> None:
    head, boxes = head_of(model), boxes_of_all_sizes()
    criterion: Any = build_criterion(head, TrainConfig())[0]
    labels = torch.zeros(1, 1, dtype=torch.int64)
    learned = [float(criterion.norms(SHAPE, box.view(1, 1, 4), labels)["box"].sum()) for box in boxes]
    places = places_of(boxes, head, SHAPE, criterion.anchor_t)
    assert places.tolist() == learned
    assert 0 in learned


def index_of(boxes: Sequence[Sequence[Sequence[float]]], sizes: list[tuple[int, int]], labels: list[int]) -> Index:
    """Images of `sizes` (height, width) with these boxes each."""
    names = [f"{number}.png" for number in range(len(sizes))]
    flat = [box for each in boxes for box in each]
    return Index(
        names=("scratch", "hole"),
        paths=Paths.of(map(Path, names)),
        sizes=np.array(sizes, np.int32),
        offsets=np.cumsum([0, *map(len, boxes)]),
        boxes=np.array(flat, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        ignore=np.zeros(len(flat), bool),
        problems=(),
        source_ids=np.arange(len(sizes)),
        category_ids=np.arange(2),
        file_names=Texts.of(names),
    )


@pytest.mark.parametrize("imgsz", [320, (256, 640)])
def test_boxes_lie_where_validation_places_them(imgsz: ImageSize, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(1000, 1333), (77, 2048), (640, 480), (1000, 1333)]
    boxes: list[list[list[float]]] = [
        [[3.3, 4.7, 55.1, 60.9]],
        [],
        [[1, 1, 2, 2], [100, 30, 479.5, 640]],
        [[999.2, 5, 1333, 1000]],
    ]
    index = index_of(boxes, sizes, [0, 1, 0, 1])

    def blank(index: Index, position: int, imgsz: ImageSize | None, *_: Any) -> np.ndarray:
        return np.zeros((*batches.augment.resized_shape(*sizes[position], imgsz), 3), np.uint8)

    monkeypatch.setattr(batches, "load_resized", blank)
    batch = ValidationBatches(index, imgsz)[[0, 1, 2, 3], shape_of(imgsz)]
    assert not isinstance(batch, Exception)
    assert np.array_equal(input_boxes(index, imgsz), batch.boxes[batch.labels >= 0].numpy())


def test_boxes_without_a_place_are_named_by_group_and_in_a_line() -> None:
    # 2000 pixels fit into 640: a pixel becomes 0.32
    boxes = [[[14, 14, 23, 20], [0, 0, 640, 640]], [[64, 64, 264, 264]], [[1001, 40, 1007, 46], [990, 30, 1100, 60]]]
    index = index_of(boxes, [(2000, 2000)] * 3, [0, 1, 1, 0, 1])
    report = matching_report(head_of("yolo11n"), "yolo11n", index, 640, 4.0)
    assert report is not None
    without = report.boxes_without()
    assert [(box["image"].name, box["class"], box["width"], box["height"]) for box in without] == [
        ("2.png", "scratch", 1.9, 1.9),
        ("0.png", "scratch", 2.9, 1.9),
    ]
    assert report.boxes_without(1) == without[:1]
    table = report.table()
    assert list(table) == ["all", "small", "medium", "large", "class scratch", "class hole"]
    assert table["all"] == pytest.approx({"boxes": 5, "none": 0.4, "few": 0, "some": 0.2, "many": 0.4})
    assert table["class scratch"]["none"] == 1
    first, second = report.lines()
    assert first == (
        "2 of 5 boxes (40.00%) hold no point of the maps at 640 pixels and can only be learned from points beside "
        "them: try a larger --imgsz or --tile or yolo11n-p2"
    )
    assert second.endswith("1.9x1.9 (scratch) in 2.png; 2.9x1.9 (scratch) in 0.png")
    fine = matching_report(head_of("yolo11n-p2"), "yolo11n-p2", index, 2016, 4.0)
    assert fine is not None
    assert fine.lines() == []
    index.ignore[:] = True
    assert matching_report(head_of("yolo11n"), "yolo11n", index, 640, 4.0) is None
