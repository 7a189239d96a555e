"""Which device is meant, and in which precision it computes."""

import pytest
import torch

from yoloyard.common.device import choose_device, choose_precision
from yoloyard.common.errors import UsageError


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three GPUs, of which the second one is old."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    capabilities = {0: (8, 0), 1: (7, 5), 2: (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])


@pytest.mark.parametrize(
    ("name", "rank", "device"),
    [
        ("auto", 0, "cuda:0"), ("auto", 2, "cuda:2"), ("cuda", 0, "cuda:0"), ("cuda", 1, "cuda:1"),
        ("cuda:1", 0, "cuda:1"), ("0", 0, "cuda:0"), ("2", 0, "cuda:2"), ("2,1", 0, "cuda:2"), ("2, 1", 1, "cuda:1"),
        ("cpu", 1, "cpu"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("three_gpus")
def test_a_gpu_has_an_index(name: str, rank: int, device: str) -> None:
    assert str(choose_device(name, rank)) == device


@pytest.mark.parametrize(("name", "rank", "shown"), [("auto", 3, "cuda:3"), ("3", 0, "3"), ("mps", 0, "mps")])
@pytest.mark.usefixtures("three_gpus")
def test_a_device_that_is_not_there_is_named(name: str, rank: int, shown: str) -> None:
    with pytest.raises(UsageError, match=f"there is no device '{shown}' here"):
        choose_device(name, rank)


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_other_accelerators_have_an_index_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    assert str(choose_device("auto")) == str(choose_device(kind)) == f"{kind}:0"


@pytest.mark.usefixtures("three_gpus")
def test_each_gpu_is_asked_for_its_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [choose_precision(torch.device("cuda", index), amp=True).name for index in range(3)]
    assert names == ["bfloat16", "float16", "bfloat16"]
    assert choose_precision(torch.device("cuda:0"), amp=False).name == "float32"
    monkeypatch.setattr(torch.version, "hip", "6.4")  # ROCm: all that it supports have bfloat16
    assert choose_precision(torch.device("cuda:1"), amp=True).name == "bfloat16"
