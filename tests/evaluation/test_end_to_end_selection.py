"""Without suppression the boxes are those that the publisher's own selection gives for the same raw outputs."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from reference import FOLDER, STRIDES
from yoloyard.common.device import Precision
from yoloyard.config.settings import EvaluationConfig
from yoloyard.evaluation.validate import detect
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorFreeHead
from yoloyard.runtimes.network import Network

CLASSES, LEVELS = 80, ((16, 20), (8, 10), (4, 5))  # of an image of 128 x 160


class Kept(Detector):
    """A network of one path without suppression that gives maps it was handed, whatever the image."""

    def __init__(self, maps: list[Tensor]) -> None:
        super().__init__()
        self.maps = maps
        self.head = AnchorFreeHead((8, 8, 8), CLASSES, STRIDES, depthwise=True, bins=1, needs_suppression=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.maps


@pytest.mark.parametrize("count", [1, 17, 40])
@pytest.mark.parametrize("multi_label", [True, False])
def test_the_best_pairs_of_box_and_class_are_those_of_the_reference(count: int, multi_label: bool) -> None:
    kept = np.load(FOLDER / "end_to_end.npz")
    rows = torch.full((sum(height * width for height, width in LEVELS), 4 + CLASSES), -20.0)
    rows[kept["points"]] = torch.from_numpy(np.concatenate((kept["distances"], kept["logits"]), axis=1))
    levels = rows.T[None].split([math.prod(size) for size in LEVELS], dim=2)
    maps = [level.unflatten(2, size) for level, size in zip(levels, LEVELS, strict=True)]

    network = Network(Kept(maps), torch.device("cpu"), Precision("cpu", torch.float32))
    settings = EvaluationConfig(max_det=count, suppression="off")
    images = torch.zeros(1, 3, 128, 160, dtype=torch.uint8)
    (found,) = detect(network, images, [None], settings, multi_label)
    expected = torch.from_numpy(kept["expected"][:count])
    torch.testing.assert_close(found.boxes, expected[:, :4], atol=5e-3, rtol=0)  # pixels
    torch.testing.assert_close(found.scores, expected[:, 4], atol=1e-4, rtol=0)
    assert found.labels.tolist() == expected[:, 5].tolist()
