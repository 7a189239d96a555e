"""The balance of the losses of each family: a gain or a norm that is off by a tenth fails here.

Networks and images follow from formulas. The numbers are of this package: what the losses of the original projects say
to the same maps is compared elsewhere.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from reference import formula, formula_images, padded_targets, random_targets
from yoloyard.config.overrides import with_overrides
from yoloyard.config.recipes import published
from yoloyard.config.settings import TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.models import registry
from yoloyard.models.detector import Detector
from yoloyard.models.heads.anchor_free import BINS

HEIGHT, WIDTH, CLASSES = 96, 128, 3
FALL = 0.4  # of the logits from bin to bin
TOLERANCE = 0.01
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("yolov5n", "yolov8n", "yolo11n", "yolo12n", "yolov13n", "yolov9t", "yolo26n")},
    "yolo11n, both paths": ("yolo11n", {"paths": "both"}),
}
# Losses with their gains, each branch's own where there are two; norms of the gradient of their sum.
EXPECTED: dict[str, tuple[dict[str, list[float]], dict[str, float]]] = {
    "yolov5n": (
        {
            "box": [0.042479, 0.041398, 0.045288],
            "cls": [0.013165, 0.012881, 0.012086],
            "obj": [0.26141, 0.11455, 0.029247],
        },
        {"backbone": 2.8096, "neck": 0.40048, "head.predictions": 0.078886},
    ),
    "yolov8n": (
        {"box": [3.8958], "cls": [3.7323], "dfl": [3.1127]},
        {"backbone": 220.44, "neck": 29.255, "head.box_branches": 15.99, "head.class_branches": 4.3474},
    ),
    "yolo11n": (
        {"box": [4.0975], "cls": [4.1855], "dfl": [2.9574]},
        {"backbone": 237.02, "neck": 17.837, "head.box_branches": 12.015, "head.class_branches": 2.0906},
    ),
    "yolo12n": (
        {"box": [4.2608], "cls": [3.9839], "dfl": [2.9439]},
        {"backbone": 166.53, "neck": 23.862, "head.box_branches": 12.458, "head.class_branches": 1.587},
    ),
    "yolov13n": (
        {"box": [4.1773], "cls": [3.9583], "dfl": [3.1367]},
        {"backbone": 73.747, "neck": 13.517, "head.box_branches": 9.7429, "head.class_branches": 1.6207},
    ),
    "yolov9t": (
        {"box": [3.9411, 1.053], "cls": [4.4918, 1.0802], "dfl": [2.8604, 0.80733]},
        {
            "backbone": 2611.6,
            "top_down": 146.81,
            "bottom_up": 4.4087,
            "auxiliary": 26.548,
            "head.box_branches": 15.317,
            "head.class_branches": 5.755,
            "head.auxiliary_box_branches": 2.8371,
            "head.auxiliary_class_branches": 1.4917,
        },
    ),
    "yolo26n": (
        {"box": [3.4631, 0.71844], "cls": [3.1466, 0.83667], "l1": [0.082826, 0.015407]},
        {
            "backbone": 185.56,
            "neck": 21.12,
            "head.box_branches": 9.7508,
            "head.class_branches": 1.2087,
            "head.one_to_one_box_branches": 3.9444,
            "head.one_to_one_class_branches": 0.5645,
        },
    ),
    "yolo11n, both paths": (
        {"box": [3.278, 0.63991], "cls": [3.3484, 0.85955], "dfl": [2.3659, 0.71776]},
        {
            "backbone": 189.62,
            "neck": 14.27,
            "head.box_branches": 9.6119,
            "head.class_branches": 1.6724,
            "head.one_to_one_box_branches": 5.8885,
            "head.one_to_one_class_branches": 0.57761,
        },
    ),
}


def fixed(name: str, **arguments: Any) -> Detector:
    """A network in training mode whose weights of convolutions follow from their number.

    All else is as it begins, but that distributions of distances favour few cells, so that each level finds a box.
    """
    torch.manual_seed(0)
    detector = registry.build(name, CLASSES, **arguments)
    weights = [each for each in detector.parameters() if each.requires_grad and each.ndim > 1]
    for number, weight in enumerate(weights):
        bound = math.sqrt(3 * 1.5 / weight[0].numel())
        weight.data = torch.from_numpy(formula(f"balance/{number}", weight.shape, -bound, bound))
    for name, bias in detector.named_parameters():
        if "box_branches" in name and name.endswith("2.bias") and len(bias) == 4 * BINS:
            bias.data = -FALL * torch.arange(BINS).repeat(4)
    return detector.train()


def part_of(name: str) -> str:
    """`backbone` of a parameter's name; of the head its part."""
    first, second, *_ = name.split(".")
    return f"head.{second}" if first == "head" else first


def balance(name: str, **arguments: Any) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Losses by their names, and gradient norms by the part of the network."""
    detector = fixed(name, **arguments)
    config = with_overrides(TrainConfig(), published(name, detector.head.criterion))
    criterion, gains = build_criterion(detector.head, config)
    targets = padded_targets(random_targets("balance", (5, 3), CLASSES, HEIGHT, WIDTH), 2)
    parts = criterion(detector(formula_images("balance", 2, HEIGHT, WIDTH)), *targets)
    losses = {key: gain * parts[key][0] / parts[key][1].clamp(min=1) for key, gain in gains.items()}
    torch.cat(list(losses.values())).sum().backward()
    squares: dict[str, Tensor] = {}
    for key, parameter in detector.named_parameters():
        if parameter.grad is not None:
            squares[part_of(key)] = squares.get(part_of(key), torch.zeros(())) + parameter.grad.square().sum()
    return {key: value.tolist() for key, value in losses.items()}, {
        key: math.sqrt(value) for key, value in squares.items()
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_and_gradients_keep_their_balance(name: str) -> None:
    model, arguments = NETWORKS[name]
    losses, norms = balance(model, **arguments)
    expected_losses, expected_norms = EXPECTED[name]
    assert list(losses) == list(expected_losses)
    for key, values in expected_losses.items():
        assert losses[key] == pytest.approx(values, rel=TOLERANCE), key
    assert norms == pytest.approx(expected_norms, rel=TOLERANCE)
