"""How fast an epoch goes."""

from __future__ import annotations

import time
from collections.abc import Iterator

from yoloyard.structures import Batch


class Stopwatch:
    """How fast an epoch goes, and how much of the time is spent waiting for data."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._waiting = 0.0
        self._images = 0

    def wait_for(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch, None after the last."""
        asked = time.perf_counter()
        batch = next(batches, None)
        self._waiting += time.perf_counter() - asked
        return batch

    def count(self, images: int) -> None:
        """So many images more have been trained on."""
        self._images += images

    def figures(self) -> dict[str, float]:
        """Images a second, the share of waiting, and the seconds."""
        seconds = time.perf_counter() - self._started
        return {
            "images_per_second": self._images / seconds,
            "waiting_fraction": self._waiting / seconds,
            "seconds": seconds,
        }

    def __str__(self) -> str:
        figures = self.figures()
        return f"{figures['images_per_second']:.1f} images/s  {figures['waiting_fraction']:.0%} waiting for data"
