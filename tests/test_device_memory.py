"""What torch says of a device's free memory, for what divides its work by it."""

import pytest
import torch

from yoloyard.device import free_bytes


def test_free_memory_is_asked_of_the_device_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 + device.index, 1000))
    assert free_bytes(torch.device("cuda", 3)) == 103
    for kind in ("cpu", "meta", "mps"):
        assert free_bytes(torch.device(kind)) is None
