"""What torch says of a device's free memory, for what divides its work by it."""

import pytest
import torch

from yoloyard.common.device import free_bytes


def test_free_memory_is_asked_of_the_device_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind)
        monkeypatch.setattr(module, "mem_get_info", lambda device: (100 + device.index, 1000))
        monkeypatch.setattr(module, "memory_reserved", lambda device: 50 + device.index)
        monkeypatch.setattr(module, "memory_allocated", lambda device: 20)
        assert free_bytes(torch.device(kind, 3)) == 103 + 33  # what torch keeps for itself is there to be used
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 1000)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 300)
    assert free_bytes(torch.device("mps:0")) == 700
    for kind in ("cpu", "meta"):
        assert free_bytes(torch.device(kind)) is None
