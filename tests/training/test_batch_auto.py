"""`--batch auto`: the largest batch that leaves a tenth of the memory; measured on a device that counts its tensors."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from memory import LiveBytes
from tiny_network import Tiny
from yoloyard.common.device import Precision
from yoloyard.common.errors import TooLittleMemoryError, UsageError
from yoloyard.common.log import shown_lines
from yoloyard.config.overrides import checked_overrides, with_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.training.setup.batch_size import find_batch, largest_batch, measured_step

CPU, FLOAT32 = torch.device("cpu"), Precision("cpu", torch.float32)
SMALL = with_overrides(TrainConfig(), {"imgsz": 64})


def found(limit: int, nominal: int, traced: int, step: Callable[[int], float]) -> tuple[int, list[int]]:
    """The largest batch, and the batches that were tried for it."""
    peaks = largest_batch(limit, nominal, lambda images: (step(images), traced * images))
    return max(images for images, peak in peaks.items() if peak <= limit), list(peaks)


@pytest.mark.parametrize("nominal", [1, 2, 7, 64])
@pytest.mark.parametrize("traced", [1, 50, 100])  # bytes of an image, of which 100 would be right
@pytest.mark.parametrize("limit", [210, 480, 1000, 10**6])
def test_it_is_the_largest_batch_within_the_limit(nominal: int, traced: int, limit: int) -> None:
    capacity = limit * 10 // 9
    step = lambda images: 100 + 100 * images if 100 + 100 * images <= capacity else math.inf  # noqa: E731
    images, tried = found(limit, nominal, traced, step)
    assert images == min((limit - 100) // 100, nominal)
    assert len(tried) <= 3 or traced == 1  # one image, half of what might fit, and the check


def test_where_the_second_step_was_far_too_large_what_lies_below_it_is_still_found() -> None:
    assert found(1000, 64, 1, lambda images: 100 + 100 * images if images < 10 else math.inf)[0] == 9


def test_a_step_of_one_image_whose_peak_is_not_that_of_its_maps_costs_few_steps_more() -> None:
    images, tried = found(4500, 64, 100, lambda images: max(3000, 1000 + 150 * images))
    assert images in (22, 23)
    assert len(tried) <= 6


def test_a_device_whose_memory_grows_faster_than_thought_gets_a_batch_that_fits() -> None:
    assert 20 <= found(1000, 64, 10, lambda images: 100 + 10 * images + images**2)[0] <= 25


def test_where_one_image_is_too_much_it_is_said_what_to_lower() -> None:
    with pytest.raises(TooLittleMemoryError, match="lower --imgsz"):
        found(1000, 64, 100, lambda images: math.inf)


class Device(LiveBytes):
    """A device of so many bytes, which are counted; it is also what torch's module of its kind answers."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if self.now > self.capacity:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate")
        return out

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.peak = 0

    def max_memory_reserved(self, device: torch.device) -> int:
        return self.peak

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return self.capacity, self.capacity

    def empty_cache(self) -> None:
        pass

    def get_rng_state(self, device: torch.device) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: torch.device) -> None:
        torch.set_rng_state(state)


@pytest.mark.slow
def test_steps_are_measured_and_nothing_is_left_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Tiny(3)
    lines: list[str] = []
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    numbers = torch.get_rng_state()
    with Device(capacity=5_000_000) as device, shown_lines(lines.append):
        monkeypatch.setattr(torch, "get_device_module", lambda _: device)
        batch = find_batch(SMALL, detector, CPU, FLOAT32, boxes=8, processes=2)
        assert torch.equal(torch.get_rng_state(), numbers)
        peak, more = (measured_step(SMALL, detector, CPU, FLOAT32, 8, batch // 2 + one)[0] for one in (0, 1))
        for capacity in (20_000, 400_000):  # not even the weights; not even the maps of one image
            device.capacity = capacity
            with pytest.raises(TooLittleMemoryError, match="lower --imgsz"):
                find_batch(SMALL, detector, CPU, FLOAT32, boxes=8, processes=2)
    assert batch % 2 == 0
    assert 2 < batch // 2 < 32
    assert peak <= 0.9 * 5_000_000 < 1.03 * more
    assert lines[-1].startswith(f"batch auto: {batch} images, {batch // 2} on each device; ")
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_checkpointed_maps_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with Device(capacity=5_000_000) as device:
        monkeypatch.setattr(torch, "get_device_module", lambda _: device)
        configs = SMALL, with_overrides(SMALL, {"checkpoint_activations": True})
        (_, plain), (_, fewer) = (measured_step(config, Tiny(3), CPU, FLOAT32, 8, 1) for config in configs)
    assert 0 < fewer < 0.6 * plain


def test_auto_is_for_the_batch_alone() -> None:
    assert checked_overrides(TrainConfig, {"batch": "auto"}) == {"batch": "auto"}
    assert with_overrides(TrainConfig(), {"batch": "auto"}).batch == 16
    with pytest.raises(UsageError, match="'batch' must be a whole number or auto, not 'many'"):
        checked_overrides(TrainConfig, {"batch": "many"})
    with pytest.raises(UsageError, match="'epochs' must be a whole number, not 'auto'"):
        checked_overrides(TrainConfig, {"epochs": "auto"})
