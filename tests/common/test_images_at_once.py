"""How many images a network that predicts gets together, by the device's memory."""

import pytest
import torch

from yoloyard.common.device import images_at_once
from yoloyard.common.image_size import ImageSize

GIGABYTE = 2**30


@pytest.mark.parametrize(
    ("imgsz", "count"), [(320, 8), (640, 2), (1280, 1), (1920, 1), (32, 800), ((160, 640), 8), ((2048, 512), 1)]
)
def test_a_cpu_gets_as_many_pixels_at_any_size(imgsz: ImageSize, count: int) -> None:
    assert images_at_once(torch.device("cpu"), imgsz) == count


@pytest.mark.parametrize(
    ("free", "reserved", "allocated", "count"),
    [(16, 0, 0, 20), (80, 0, 0, 102), (2, 0, 0, 2), (0, 0, 0, 1), (2, 10, 4, 10)],
)
def test_a_gpu_gets_what_half_of_its_free_memory_holds(
    monkeypatch: pytest.MonkeyPatch, free: int, reserved: int, allocated: int, count: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GIGABYTE, 80 * GIGABYTE))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved * GIGABYTE)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated * GIGABYTE)
    assert images_at_once(torch.device("cuda:0"), 640) == count


def test_a_device_whose_memory_torch_does_not_know_gets_the_whole_batch() -> None:
    assert images_at_once(torch.device("meta"), 640) is None
