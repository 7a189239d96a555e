"""How many worker processes are possible: a daemonic process may start none, and each takes file descriptors."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys

from yoloyard.common.errors import UserError

MIN_OPEN_FILES = 64  # with fewer, training may fail even without workers; Linux' usual limit is 1,024
SPARE = 32  # for what is opened for a moment: images, checkpoints, the report
PIPES_OF_WORKER = 5
TENSORS_OF_BATCH = 4  # each is passed on as a descriptor
LOADERS = 2  # training's and validation's work side by side, and each takes its share only


def check_limit() -> None:
    """Raises UserError if so few files may be open that a training would fail, or wait, somewhere in the middle."""
    limit = _limit()
    if limit < MIN_OPEN_FILES:
        raise UserError(
            f"this process may open {limit} files only (ulimit -n), and at least {MIN_OPEN_FILES} are needed: "
            "say `ulimit -n 1024` before, or ask whoever has set this limit"
        )


def free_descriptors() -> int:
    """How many more files this process may open."""
    return _limit() - len(os.listdir("/dev/fd"))


def wanted_descriptors(workers: int, batches: int = 0) -> int:
    """How many descriptors two loaders of so many workers may take, with `batches` of each in shared memory."""
    return LOADERS * (PIPES_OF_WORKER * workers + TENSORS_OF_BATCH * batches) + SPARE


def possible_workers(workers: int) -> tuple[int, str | None]:
    """`workers` or fewer, and a line for the user that says why."""
    if workers and multiprocessing.current_process().daemon:
        return 0, f"{workers} workers can't be started from a daemonic process: images are loaded in this one"
    free = free_descriptors()
    possible = min(workers, max(0, (free - SPARE) // (LOADERS * PIPES_OF_WORKER)))
    if possible == workers:
        return workers, None
    return possible, f"{free} more files may be open (ulimit -n), too few for {workers} workers: {possible} are used"


def _limit() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit
