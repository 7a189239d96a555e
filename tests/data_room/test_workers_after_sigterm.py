"""A cluster sends SIGTERM to all processes of a job: workers go on for as long as the trainer needs them."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from yoloyard.config.settings import TrainConfig
from yoloyard.data.index.index import Index
from yoloyard.data.loading.loader import _start_worker, make_train_loader

FORK = multiprocessing.get_context("fork")

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*fork")


def seconds_left_after_sigterm(ending: Event, answer: "SimpleQueue[int]") -> None:
    _start_worker(ending, 0)
    os.kill(os.getpid(), signal.SIGTERM)
    answer.put(signal.alarm(0))


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_worker_has_no_limit_of_time_after_sigterm_unless_the_program_ends(at_the_end: bool) -> None:
    ending, answer = FORK.Event(), FORK.SimpleQueue()
    if at_the_end:
        ending.set()
    worker = FORK.Process(target=seconds_left_after_sigterm, args=(ending, answer))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert answer.empty() == at_the_end  # it has ended before it could answer
    if not at_the_end:
        assert answer.get() == 0  # no alarm is set that would end it while the trainer still saves


def test_batches_still_come_after_sigterm_and_workers_end_with_their_loader(index: Index) -> None:
    before = set(multiprocessing.active_children())
    loader = make_train_loader(index, TrainConfig(batch=4, imgsz=64, workers=2))
    batches = loader.epoch(0)
    taken = [next(batches), next(batches)]  # one of each worker: both have started
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGTERM)
    assert len([*taken, *batches]) == 6
    assert all(worker.is_alive() for worker in workers)
    del batches, loader
    assert set(multiprocessing.active_children()) <= before


def test_workers_end_by_themselves_after_a_trainer_that_is_killed(make_set: Callable[..., Path]) -> None:
    program = """
import multiprocessing, os, pathlib, signal, sys
from torch.utils.data._utils import worker
worker.MP_STATUS_CHECK_INTERVAL = 0.1  # seconds between two looks whether the trainer lives; 5 otherwise
from yoloyard.config.settings import TrainConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import load_index
from yoloyard.data.loading.loader import make_train_loader
index = load_index(read_data_yaml(pathlib.Path(sys.argv[1])), "train")
loader = make_train_loader(index, TrainConfig(batch=4, imgsz=64, workers=1), start_method="fork")
next(loader.epoch(0))
for child in multiprocessing.active_children():
    os.kill(child.pid, signal.SIGTERM)
    print("asked to stop", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    # This returns when nobody holds the output any more, so when the worker has ended as well.
    done = subprocess.run(
        [sys.executable, "-c", program, str(make_set())], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "asked to stop\n"), done.stderr
