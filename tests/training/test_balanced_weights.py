"""Class weights from the user's words or from the boxes."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from yoloyard.common.errors import UsageError, UserError
from yoloyard.config.settings import TrainConfig
from yoloyard.data.index.index import Index
from yoloyard.losses import build_criterion
from yoloyard.models import registry
from yoloyard.training.setup.settings import (
    balanced_class_weights,
    class_weights_line,
    parse_class_weights,
    resolve_class_weights,
)


def test_balanced_weights_are_inverse_roots_with_mean_one_over_the_boxes() -> None:
    boxes = np.array([400, 100, 4, 0])
    weights = balanced_class_weights(boxes)
    assert weights[:3] / weights[0] == pytest.approx([1, 2, 10])
    assert (weights * boxes).sum() / boxes.sum() == pytest.approx(1)
    assert weights[3] == 1


def test_words_become_numbers() -> None:
    labels = np.array([0] * 9 + [1] + [2])
    ignore = np.array([False] * 10 + [True])
    index = cast(Index, SimpleNamespace(labels=labels, ignore=ignore, names=("dent", "scratch", "stain")))
    text = resolve_class_weights("balanced", index)
    assert parse_class_weights(text, 3) == pytest.approx(balanced_class_weights(np.array([9, 1, 0])), rel=1e-5)
    assert resolve_class_weights("1, 2,0.5", index) == "1, 2,0.5"
    assert class_weights_line("1,2,0.5", index.names) == "dent 1, scratch 2, stain 0.5"
    assert class_weights_line(",".join(["1"] * 30), ["c"] * 30).endswith("and 10 more, see config.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2", "has 2 numbers, but there are 3 classes"),
        ("1,2,x", "say 'balanced' or numbers"),
        ("1,2,-1", "no weight can be below 0"),
        ("1,2,nan", "no weight can be below 0"),
        ("0,0,0", "one must be above 0"),
    ],
)
def test_wrong_weights_are_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_class_weights(text, 3)


@pytest.mark.parametrize("model", ["yolo11n", "yolov5n"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_criterion_has_them_on_the_network_s_device(model: str, device: str) -> None:
    with torch.device(device):
        detector = registry.build(model, num_classes=3)
    criterion: Any = build_criterion(detector.head, TrainConfig(class_weights="1,2,0.5"))[0]
    assert criterion.class_weights.device.type == device
    assert criterion.class_weights.shape == (3,)
    maps = detector(torch.zeros(1, 3, 64, 64, device=device))
    parts = criterion(maps, torch.zeros(1, 1, 4, device=device), torch.full((1, 1), -1, device=device))
    assert parts["cls"][0].device.type == device


def test_a_criterion_that_is_not_there_is_named() -> None:
    head = registry.build("yolo11n", num_classes=3).head
    head.criterion = "task_alined"
    with pytest.raises(UserError, match=r"unknown criterion 'task_alined' of a head: there are .*, task_aligned"):
        build_criterion(head, TrainConfig())
