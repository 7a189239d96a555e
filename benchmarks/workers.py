"""Threads or processes as workers: training samples a second, and what the thread that trains still gets done.

    python benchmarks/workers.py --reference-python PYTHON

Ours alone, the images of samples.py, 640 pixels, batch 16, in turns. Between two batches the main thread does
nothing, or calls torch on tiny tensors for a while, as a loop does that keeps a GPU busy: each call gives Python's lock
away and waits for it again, which takes long where another thread computes in Python.
"""

from __future__ import annotations

import itertools
import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import torch
from samples_set import IMAGES, TIMES, write_set
from side_by_side import LOGS, Row, arguments_of, write_results

from yoloyard.common.structures import Batch
from yoloyard.config.settings import TrainConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import Index, load_index
from yoloyard.data.loading.loader import make_train_loader
from yoloyard.data.loading.sampling import batch_requests
from yoloyard.demo.write import write_demo

BATCH = 16
BATCHES = 24  # of a turn
WORK_SECONDS = 0.1  # of the main thread between two batches
AHEAD = 2  # batches that each worker may be ahead


def main() -> None:
    arguments = arguments_of(
        str(__doc__),
        data={"type": Path, "default": Path("trees", "data.yaml"), "help": "data.yaml of the images"},
        workers={"type": int, "nargs": "*", "default": [1, 2, 4], "help": "how many"},
    )
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    demo = write_demo(LOGS / "demo")
    data = write_set(LOGS / "samples", [demo.parent, arguments.data.parent], IMAGES, TIMES)
    index = load_index(read_data_yaml(data), "train")
    alone = statistics.median(calls_in(1.0) for _ in range(5))
    rows = []
    for workers, is_busy in itertools.product(arguments.workers, (False, True)):
        sources = {"threads": from_threads(index, workers), "processes": from_processes(index, workers)}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
        for turn in range(-1, arguments.repeats):
            for name, batches in sources.items():
                figures = take(batches, is_busy)
                if turn >= 0:
                    found[name].append(figures)
        what = f"{workers} workers, the main thread {'calls torch' if is_busy else 'waits'}"
        samples = {name: [each[0] for each in turns] for name, turns in found.items()}
        note = "ours: threads, theirs: processes"
        rows.append(Row(what, "samples/s", samples["threads"], samples["processes"], None, True, note))
        if is_busy:
            speeds = {name: [each[1] / alone for each in turns] for name, turns in found.items()}
            note += "; share of the speed that it has alone"
            rows.append(Row(f"{what}: its speed", "", speeds["threads"], speeds["processes"], None, True, note))
        write_results("workers", rows, arguments.reference_python, LOGS)
    write_results("workers", rows, arguments.reference_python)


def from_processes(index: Index, workers: int) -> Iterator[Batch]:
    """Endless batches of the loader as it is."""
    loader = make_train_loader(index, TrainConfig(batch=BATCH, workers=workers))
    return (batch for epoch in itertools.count() for batch in loader.epoch(epoch, epochs=10**9))


def from_threads(index: Index, workers: int) -> Iterator[Batch]:
    """The same batches in the same order, each thread with a loader's data set of its own."""
    loaders = [make_train_loader(index, TrainConfig(batch=BATCH, workers=0)) for _ in range(workers)]
    datasets: queue.SimpleQueue = queue.SimpleQueue()
    for loader in loaders:
        datasets.put(loader.dataset)
    own = threading.local()

    def make(request: object) -> Batch:
        if not hasattr(own, "dataset"):
            own.dataset = datasets.get()
        return own.dataset[request]

    plan = loaders[0].dataset.plan
    waiting: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(workers)
    for epoch in itertools.count():
        for request in batch_requests(len(plan), BATCH, 0, 1, epoch, 0, True):
            waiting.append(pool.submit(make, request))
            if len(waiting) > workers * AHEAD:
                yield waiting.popleft().result()


def take(batches: Iterator[Batch], is_busy: bool) -> tuple[float, float]:
    """Samples a second, and calls of torch a second where the main thread makes them between two batches."""
    began, speeds = time.perf_counter(), []
    for _ in itertools.islice(batches, BATCHES):
        speeds.append(calls_in(WORK_SECONDS) if is_busy else 0.0)
    return BATCHES * BATCH / (time.perf_counter() - began), statistics.mean(speeds)


def calls_in(seconds: float) -> float:
    """Calls of torch a second, on a tensor of one element."""
    number = torch.zeros(1)
    began, calls = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        number.add_(1)
        calls += 1
    return calls / passed


if __name__ == "__main__":
    main()
