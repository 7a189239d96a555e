"""What counts as waiting for data: the time in which the device has nothing to do because the batch is not there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from on_device import some_batch
from yoloyard.common.structures import Batch
from yoloyard.training.stopwatch import Stopwatch


class Device:
    """A device with a queue, and the clock of the host; all in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.busy_until = 0.0

    def submit(self, seconds: float) -> None:
        self.busy_until = max(self.now, self.busy_until) + seconds

    def batches(self, seconds: list[float]) -> Iterator[Batch]:
        for each in seconds:
            self.now += each
            yield some_batch()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()

    class Event:
        """Reached when the device has done all that was submitted before."""

        def __init__(self, device_type: str, *, enable_timing: bool) -> None:
            assert (device_type, enable_timing) == ("xpu", True)

        def record(self) -> None:
            self.reached = max(device.now, device.busy_until)

        def query(self) -> bool:
            return device.now >= self.reached

        def elapsed_time(self, later: Event) -> float:
            assert self.query()
            assert later.query()
            return 1000 * (later.reached - self.reached)

    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(time, "perf_counter", lambda: device.now)
    return device


def waited(device: Device, kind: str, loading: list[float], work: float, others: float = 0.0) -> float:
    """Seconds that an epoch counts as waiting: batches take `loading`, each is `work` for the device.

    The host is a step ahead, as in the trainer, and does something else for `others` seconds after each step.
    """
    stopwatch = Stopwatch(SimpleNamespace(type=kind))  # type: ignore[arg-type]
    batches = device.batches(loading)
    done = [0.0]
    while stopwatch.wait_for(batches) is not None:
        device.submit(work)
        done.append(device.busy_until)
        device.now = max(device.now, done[-2]) + others
        stopwatch.count(2)
    device.now = max(device.now, device.busy_until)
    figures = stopwatch.figures()
    assert figures["seconds"] == device.now
    assert figures["images_per_second"] == pytest.approx(2 * len(loading) / device.now)
    return figures["waiting_fraction"] * device.now


def test_a_gpu_that_is_busy_while_the_host_waits_is_not_waiting(device: Device) -> None:
    assert waited(device, "xpu", [0, 2, 2, 2], work=10) == 0


def test_a_gpu_waits_from_its_last_result_to_the_arrival_of_the_batch(device: Device) -> None:
    # Batches arrive at 5, 8, 16 and 20; the device ends at 6, 9, 17.
    assert waited(device, "xpu", [5, 3, 8, 4], work=1) == pytest.approx(5 + 2 + 7 + 3)


def test_what_else_the_host_does_is_not_waiting_for_data(device: Device) -> None:
    assert waited(device, "xpu", [0, 0, 0], work=1, others=4) == 0


def test_on_a_cpu_the_wait_of_the_host_is_that_of_the_device(device: Device) -> None:
    assert waited(device, "cpu", [5, 3, 8, 4], work=10) == 20


def test_a_look_in_the_middle_of_an_epoch_does_not_wait_for_the_device(device: Device) -> None:
    stopwatch = Stopwatch(SimpleNamespace(type="xpu"))  # type: ignore[arg-type]
    batches = device.batches([1, 1, 1])
    for _ in range(3):
        stopwatch.wait_for(batches)
        device.submit(10)
    assert device.now == 3
    assert stopwatch.figures()["waiting_fraction"] == pytest.approx(1 / 3)  # the first batch; the rest is not reached
