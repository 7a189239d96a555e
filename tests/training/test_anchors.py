"""Automatic anchors: kept where they fit, made again where they don't, with what the boxes gain from it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from yoloyard.data.index.index import Index, Paths, Texts
from yoloyard.models.heads import AnchorBasedHead
from yoloyard.models.yolov5 import P5_ANCHORS, build
from yoloyard.training.setup.anchors import fit_anchors, make_anchors, recall_by_size


def index_of(boxes: list[np.ndarray], size: tuple[int, int] = (640, 640)) -> Index:
    """An index of images of `size` (height, width) with boxes of these (width, height) in their corners."""
    counts = [len(own) for own in boxes]
    shapes = np.concatenate(boxes) if boxes else np.zeros((0, 2))
    corners = np.concatenate((np.zeros_like(shapes), shapes), axis=1).astype(np.float32)
    return Index(
        names=("thing",),
        paths=Paths(np.zeros(0, np.uint8), np.zeros(len(boxes) + 1, np.int64)),
        sizes=np.array([size] * len(boxes), np.int32),
        offsets=np.cumsum([0, *counts]),
        boxes=corners,
        labels=np.zeros(len(corners), np.int64),
        ignore=np.zeros(len(corners), bool),
        problems=(),
        source_ids=np.arange(len(boxes)),
        category_ids=np.zeros(1, np.int64),
        file_names=Texts.of([""] * len(boxes)),
        file=Path(),
    )


def head_of(model: str = "n") -> AnchorBasedHead:
    head = build(model, num_classes=1).head
    assert isinstance(head, AnchorBasedHead)
    return head


def test_anchors_that_fit_stay(said: list[str]) -> None:
    random = np.random.default_rng(0)
    boxes = [random.uniform(20, 200, (5, 2)) for _ in range(20)]
    head = head_of()
    fit_anchors(head, index_of(boxes), 640, 4.0, 0)
    assert head.anchors.tolist() == [[list(map(float, anchor)) for anchor in level] for level in P5_ANCHORS]
    assert len(said) == 1
    assert said[0].startswith("anchors fit: all 100.0%")


@pytest.mark.parametrize("model", ["n", "n6"])
def test_boxes_of_an_unusual_kind_get_anchors_of_their_own(model: str, said: list[str]) -> None:
    """Long thin cracks: 200 to 300 pixels wide, 3 to 6 high."""
    random = np.random.default_rng(0)
    boxes = [np.stack((random.uniform(200, 300, 6), random.uniform(3, 6, 6)), axis=1) for _ in range(30)]
    head = head_of(model)
    fit_anchors(head, index_of(boxes), 640, 4.0, 0)
    anchors = head.anchors
    assert recall_by_size(np.concatenate(boxes), anchors.flatten(0, 1).double().numpy(), 4.0)["all"] == 1
    areas = anchors.prod(dim=2)
    assert torch.equal(areas.flatten(), areas.flatten().sort().values)
    assert said[0].startswith("anchors fit only 0.0% of the boxes")
    assert said[1].startswith("  old anchors: all 0.0%")
    assert said[2].startswith("  new anchors: all 100.0%")
    assert len(said) == 3 + len(head.strides)
    # the same data and seed give the same anchors
    again = head_of(model)
    fit_anchors(again, index_of(boxes), 640, 4.0, 0)
    assert torch.equal(again.anchors, anchors)


def test_sizes_are_those_of_training(said: list[str]) -> None:
    """Images of 2560 x 1280 trained with 640 pixels: boxes are a quarter as large."""
    head = head_of()
    fit_anchors(head, index_of([np.full((3, 2), 480.0)], (1280, 2560)), 640, 4.0, 0)
    assert said[0].startswith("anchors fit: all 100.0%")
    assert "large 100.0%" in said[0]
    assert "medium" not in said[0]


def test_boxes_are_those_of_images_that_just_fit_into_a_height_and_a_width(said: list[str]) -> None:
    """Images of 2560 x 1280 at 160 x 2560 are an eighth as large."""
    fit_anchors(head_of(), index_of([np.full((3, 2), 480.0)], (1280, 2560)), (160, 2560), 4.0, 0)
    assert "medium 100.0%" in said[0]
    assert "large" not in said[0]


def test_evolution_improves_on_what_it_starts_from() -> None:
    random = np.random.default_rng(1)
    boxes = random.lognormal(3.5, 0.8, (400, 2))
    anchors = make_anchors(boxes, 9, 640, 4.0, random)
    assert anchors.shape == (9, 2)
    assert recall_by_size(boxes, anchors, 4.0)["all"] > 0.98


def test_a_handful_of_equal_boxes_is_no_reason_to_fail(said: list[str]) -> None:
    head = head_of()
    fit_anchors(head, index_of([np.array([[600.0, 2.0]])]), 640, 4.0, 0)
    assert head.anchors.isfinite().all()
    assert (head.anchors > 0).all()
    assert said[0].startswith("anchors fit only")


def test_boxes_that_are_not_taught_do_not_count(said: list[str]) -> None:
    index = index_of([np.full((3, 2), 60.0), np.array([[600.0, 2.0]])])
    index.ignore[3] = True
    fit_anchors(head_of(), index, 640, 4.0, 0)
    assert said[0].startswith("anchors fit: all 100.0%")
    index.ignore[:] = True
    fit_anchors(head_of(), index, 640, 4.0, 0)
    assert len(said) == 1
