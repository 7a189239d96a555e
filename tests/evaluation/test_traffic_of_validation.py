"""What a validation batch of 32 images asks of a device: one copy of detections, few reads, the same figures."""

from __future__ import annotations

import pytest
import torch
from device_traffic import maps_with_objects, traffic
from torch import Tensor, nn

from yoloyard.common.device import Precision
from yoloyard.common.structures import Batch, Detections, ImageTransform
from yoloyard.config.settings import EvaluationConfig
from yoloyard.evaluation.validate import detect, predict_all
from yoloyard.models.heads import AnchorFreeHead
from yoloyard.runtimes.network import Network

IMAGES, SIDE = 32, 320
FLOAT32 = Precision("cpu", torch.float32)
AS_ON_A_GPU = Precision("cpu", torch.float32, "accelerator")
TRANSFORM = ImageTransform(2 * SIDE, 2 * SIDE, 0.5, 0.5, 0.0, 0.0)


class Finding(nn.Module):
    """A detector that gives maps that are there already."""

    def __init__(self, maps: tuple[Tensor, ...], num_classes: int) -> None:
        super().__init__()
        self.maps, self.head = maps, AnchorFreeHead((8, 8, 8), num_classes, (8, 16, 32), depthwise=False)
        self.decode_above = self.head.decode_above
        self.strides, self.num_classes = self.head.strides, num_classes

    def fused(self, suppression: bool | None = None) -> Finding:
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.maps


def found_by(detector: Finding, precision: Precision) -> list[Detections]:
    images = torch.zeros(IMAGES, 3, SIDE, SIDE, dtype=torch.uint8)
    network = Network(detector, torch.device("cpu"), precision)
    return detect(network, images, [TRANSFORM] * IMAGES, EvaluationConfig(), multi_label=True)


@pytest.mark.parametrize(("objects", "most_reads", "most_launches"), [(8, 13, 335), (40, 21, 645)])
def test_few_reads_and_one_copy_a_batch(objects: int, most_reads: int, most_launches: int) -> None:
    detector = Finding(maps_with_objects(IMAGES, objects, 1, SIDE), 1)
    launches, reads = traffic(lambda: found_by(detector, AS_ON_A_GPU))
    assert reads["cpu"] == 1  # boxes, scores and labels of all images
    assert reads["boolean mask"] == 0  # each would ask how many there are
    assert reads["nonzero"] == len(detector.maps) + 1
    assert reads.total() <= most_reads, reads
    assert launches <= most_launches


def test_a_gpu_finds_what_a_cpu_finds() -> None:
    detector = Finding(maps_with_objects(IMAGES, 20, 3, SIDE, seed=1), 3)
    expected = found_by(detector, FLOAT32)
    for one, other in zip(found_by(detector, AS_ON_A_GPU), expected, strict=True):
        assert len(one) > 20
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.labels, other.labels)
        assert one.labels.dtype == torch.int64


def test_images_without_a_candidate_are_empty_beside_others() -> None:
    maps = maps_with_objects(4, 3, 2, SIDE)
    for level in maps:
        level[1:3] = -20.0
    detector = Finding(maps, 2)
    images = torch.zeros(4, 3, SIDE, SIDE, dtype=torch.uint8)
    network = Network(detector, torch.device("cpu"), AS_ON_A_GPU)
    found = detect(network, images, [None] * 4, EvaluationConfig(), multi_label=True)
    assert [len(each) > 0 for each in found] == [True, False, False, True]
    assert found[1].boxes.shape == (0, 4)
    for level in maps:
        level[:] = -20.0
    found = detect(network, images, [None] * 4, EvaluationConfig(), multi_label=True)
    assert [len(each) for each in found] == [0, 0, 0, 0]


def test_a_validation_sends_the_images_alone_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, ...]] = []

    def noting(tensor: Tensor, device: torch.device, memory_format: torch.memory_format) -> Tensor:
        sent.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr("yoloyard.evaluation.validate.send", noting)
    detector = Finding(maps_with_objects(2, 1, 1, 64), 1)
    batch = Batch(
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(2, 8, 4),
        torch.full((2, 8), -1),
        torch.zeros(2, 8, dtype=torch.bool),
        [4, 7],
        [None, None],
    )
    found = predict_all(Network(detector, torch.device("cpu"), FLOAT32), [batch], EvaluationConfig())
    assert list(found) == [4, 7]
    assert sent == [(2, 3, 64, 64)]
