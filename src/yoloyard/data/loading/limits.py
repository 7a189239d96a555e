"""What the system allows the workers of a loader: processes, open files, shared memory and memory.

A container's /dev/shm often holds 64 MB. A worker that writes beyond its end dies of a bus error, or fails to allocate
in newer releases of torch. Batches go through the workers' pipes instead where it is too small.
"""

import multiprocessing
import os
import resource
import shutil
import sys
from pathlib import Path

import psutil

from yoloyard.common.errors import UserError
from yoloyard.common.pixel_spec import PixelSpec

SHM = "/dev/shm"
PREFETCHED = 2  # batches that a worker makes ahead; torch's default
IN_USE = 2  # batches that the main process may hold meanwhile
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
    """`workers` or fewer, and a line for the user that says why. A daemonic process may start none."""
    if workers and multiprocessing.current_process().daemon:
        return 0, f"{workers} workers can't be started from a daemonic process: images are loaded in this one"
    free = free_descriptors()
    possible = min(workers, max(0, (free - SPARE) // (LOADERS * PIPES_OF_WORKER)))
    if possible == workers:
        return workers, None
    return possible, f"{free} more files may be open (ulimit -n), too few for {workers} workers: {possible} are used"


def batch_bytes(images: int, shape: tuple[int, int], boxes: int, pixels: PixelSpec) -> int:
    """Bytes of a batch of so many images (H, W), with so many boxes each (see structures.Batch)."""
    return images * (pixels.image_bytes(*shape) + boxes * (4 * 4 + 8 + 1))


def free_shared_memory() -> int | None:
    """Bytes that are free in /dev/shm; None where there is none, as on macOS."""
    return shutil.disk_usage(SHM).free if os.path.isdir(SHM) else None


def free_memory(shared: bool = False) -> int:
    """Bytes that this process can still take, a container's limit included; of shared memory if `shared`."""
    limits = [psutil.virtual_memory().available]
    try:
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text().strip()
        if most != "max":
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / "memory.current").read_text()) - int(statistics["inactive_file"])
            limits.append(int(most) - used)
    except OSError:
        pass  # no control groups here: no limit
    if shared and (free := free_shared_memory()) is not None:
        limits.append(free)
    return min(limits) // _processes_here()


def shortage(needed_by_batch: int, workers: int) -> str | None:
    """Why the batches of a loader can't go through shared memory, as a line for the user; None if they can."""
    free, batches = free_shared_memory(), PREFETCHED * workers + IN_USE
    needed = batches * needed_by_batch * LOADERS * _processes_here()
    if workers and wanted_descriptors(workers, batches) > free_descriptors():
        return (
            f"{free_descriptors()} more files may be open (ulimit -n), too few for batches of {workers} workers in "
            "shared memory: they go through pipes instead, which is slower"
        )
    if workers == 0 or free is None or needed <= free:
        return None
    return (
        f"{SHM} has {free / 1e6:.0f} MB free and {needed / 1e6:.0f} MB are needed for batches "
        f"of {workers} workers: they go through pipes instead, which is slower. Give the container more "
        "(docker run --shm-size=8g), or use fewer --workers"
    )


def _limit() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def _processes_here() -> int:
    """How many processes train together on this machine, which share its memory evenly."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
