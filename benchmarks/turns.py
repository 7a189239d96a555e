"""What a measured program does: it gets ready, then works whenever it is told to, and says how long that took.

Standard library only: the programs of both sides import it, each in its own environment.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator

BATCHES = 32  # of a turn of `count_samples`


class Turns:
    """Turns of a program that `side_by_side.compare` has started. While there are turns to come, `wait()` is true."""

    def __init__(self) -> None:
        # A file of their own, since the reference prints to standard output while it is imported.
        self._answers = os.fdopen(int(os.environ["ANSWERS_TO"]), "w", encoding="utf-8")

    def wait(self) -> bool:
        """Wait for a turn; false if there is none to come."""
        return bool(sys.stdin.readline())

    def report(self, **figures: float) -> None:
        """Answer for this turn: the figures that were measured in it."""
        print(json.dumps(figures), file=self._answers, flush=True)

    def count_samples(self, batches: Iterator[object], batch: int) -> None:
        """In each turn take BATCHES of the endless `batches`, of `batch` samples, and answer with samples a second."""
        while self.wait():
            began = time.perf_counter()
            for _ in itertools.islice(batches, BATCHES):
                pass
            self.report(samples_per_second=BATCHES * batch / (time.perf_counter() - began))
