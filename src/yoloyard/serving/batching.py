"""Requests wait here while the network is busy; then those that fit together are computed together.

All but the computing happens on the event loop, so nothing here needs a lock.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect, Request

from yoloyard.serving.limits import busy
from yoloyard.serving.metrics import Metrics

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Work:
    """What a request wants of a network: `compute` makes a result (or an exception) of each item in a list of them.

    Works of one `kind` have one `compute` and may go together, at most `at_once` of them.
    """

    model: str
    kind: Hashable
    compute: Callable[[list[Any]], list[Any]]
    item: Any
    at_once: int = 1
    images: int = 1
    answer: "asyncio.Future[Any]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Queue:
    """At most `places` works that wait, and one thread that computes."""

    def __init__(self, places: int, metrics: Metrics) -> None:
        self._places, self._metrics = places, metrics
        self._waiting: deque[Work] = deque()
        self._come = asyncio.Event()
        metrics.waiting.set_function(lambda: len(self._waiting))

    def refuse_if_full(self) -> None:
        """Raise HTTPException 429 if no place is free."""
        if len(self._waiting) >= self._places:
            raise busy(f"{self._places} requests are waiting")

    async def result(self, work: Work, request: Request) -> Any:
        """What `work` gives. Raises HTTPException if the queue is full, ClientDisconnect if the client leaves.

        A work whose client has left is not computed.
        """
        self.refuse_if_full()
        self._waiting.append(work)
        self._come.set()
        left = asyncio.ensure_future(request.receive())  # after the body, only the end of the connection comes
        try:
            await asyncio.wait({work.answer, left}, return_when=asyncio.FIRST_COMPLETED)
            if not work.answer.done():
                raise ClientDisconnect
            return work.answer.result()
        finally:
            left.cancel()
            work.answer.cancel()
            if work in self._waiting:
                self._waiting.remove(work)

    async def run(self) -> None:
        """Compute what comes, until this is cancelled."""
        with ThreadPoolExecutor(1, "network") as thread:
            while True:
                await self._come.wait()
                batch = self._take()
                if batch:
                    await self._compute(batch, thread)

    def _take(self) -> list[Work]:
        first = next(iter(self._waiting), None)
        batch = [work for work in self._waiting if first and work.kind == first.kind][: first.at_once if first else 0]
        for work in batch:
            self._waiting.remove(work)
        if not self._waiting:
            self._come.clear()
        return batch

    async def _compute(self, batch: list[Work], thread: ThreadPoolExecutor) -> None:
        started, items = time.perf_counter(), [work.item for work in batch]
        results: list[Any]
        self._metrics.computing.set(len(batch))
        try:
            results = await asyncio.get_running_loop().run_in_executor(thread, batch[0].compute, items)
        except Exception as error:  # noqa: BLE001  # whatever the network says: these fail, the server goes on
            log.error(f"{batch[0].model} failed: {type(error).__name__}: {error}")
            results = [error] * len(batch)
        model = batch[0].model
        self._metrics.computing.set(0)
        self._metrics.batch_seconds.labels(model).observe(time.perf_counter() - started)
        self._metrics.batch_images.labels(model).observe(sum(work.images for work in batch))
        for work, result in zip(batch, results, strict=True):
            if work.answer.done():  # its client has left
                continue
            if isinstance(result, Exception):
                work.answer.set_exception(result)
            else:
                work.answer.set_result(result)
