"""How fast an epoch goes, how long the device waits for data, and the most memory that was used."""

import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Self

import torch

from yoloyard.common.structures import Batch


class Stopwatch:
    """How fast an epoch goes, and for how much of the time the device waits for data.

    A GPU still works while the host waits for a batch. So an event is put into its queue before and after each wait: it
    waits between the first, when it has done all that it had, and the second, when the batch is there as well.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = time.perf_counter()
        self._waits: deque[tuple[_Mark, _Mark]] = deque()  # that the device has not reached, as far as is known
        self._waiting = 0.0
        self._images = 0

    def wait_for(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch, None after the last."""
        self._add_up()
        asked = _Mark(self._device)
        batch = next(batches, None)
        self._waits.append((asked, _Mark(self._device)))
        return batch

    def count(self, images: int) -> None:
        """So many images more have been trained on."""
        self._images += images

    def figures(self) -> dict[str, float]:
        """Images a second, the share of waiting as far as the device has come, and the seconds."""
        self._add_up()
        seconds = time.perf_counter() - self._started
        return {
            "images_per_second": self._images / seconds,
            "waiting_fraction": self._waiting / seconds,
            "seconds": seconds,
        }

    def _add_up(self) -> None:
        while self._waits and self._waits[0][1].is_reached():
            asked, arrived = self._waits.popleft()
            self._waiting += asked.seconds_until(arrived)


class _Mark:
    """A point of the device's work; of the host's time on a CPU, and on MPS, whose timing waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._time, self._event = time.perf_counter(), None
        if device.type in ("cuda", "xpu"):
            self._event = torch.Event(device.type, enable_timing=True)
            self._event.record()

    def is_reached(self) -> bool:
        """Has the device done all that comes before? The host does not wait for the answer."""
        return self._event is None or self._event.query()

    def seconds_until(self, later: Self) -> float:
        """Seconds of the device's time from here to `later`; both are reached."""
        if self._event is None or later._event is None:
            return later._time - self._time
        return self._event.elapsed_time(later._event) / 1000


def memory_gigabytes(device: torch.device) -> float:
    """The most memory used up to now: the accelerator's, or this process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
