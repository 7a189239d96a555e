"""Work on many small files by several threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

AT_ONCE = 200  # a pool's own work for each task is more than a small file's

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(
    do: Callable[[Item], Result], items: Sequence[Item], threads: int | None, at_once: int = AT_ONCE
) -> list[Result]:
    """The results of `do` for all items, in their order; a thread takes `at_once` items at a time."""
    shares = [items[start : start + at_once] for start in range(0, len(items), at_once)]
    with ThreadPoolExecutor(threads) as pool:
        return [
            result for results in pool.map(lambda share: [do(item) for item in share], shares) for result in results
        ]
