"""How batches come from workers: through /dev/shm where it is large enough, else through the workers' pipes.

A container's /dev/shm often holds 64 MB. A worker that writes beyond its end dies of a bus error, or fails to allocate
in newer releases of torch.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from yoloyard.common.structures import Batch
from yoloyard.data.loading.descriptors import LOADERS, free_descriptors, wanted_descriptors

SHM = "/dev/shm"
PREFETCHED = 2  # batches that a worker makes ahead; torch's default
IN_USE = 2  # batches that the main process may hold meanwhile


class BatchByValue(Batch):
    """A batch that is pickled with its numbers; torch would move its tensors to shared memory and pickle handles."""

    def __reduce__(self) -> Any:
        tensors = (self.images.permute(0, 2, 3, 1), self.boxes, self.labels, self.ignore)
        arrays = [tensor.numpy() for tensor in tensors]
        return _from_arrays, (arrays, self.image_ids, self.transforms, self.source_ids)


def by_value(item: Any) -> Any:
    """A batch as one that is pickled with its numbers; anything else as it is. Called in the workers."""
    return BatchByValue(**vars(item)) if isinstance(item, Batch) else item


def batch_bytes(images: int, height: int, width: int, boxes: int) -> int:
    """Bytes of a batch of so many images, with so many boxes each (see structures.Batch)."""
    return images * (3 * height * width + boxes * (4 * 4 + 8 + 1))


def free_shared_memory() -> int | None:
    """Bytes that are free in /dev/shm; None where there is none, as on macOS."""
    if not os.path.isdir(SHM):
        return None
    status = os.statvfs(SHM)
    return status.f_bavail * status.f_frsize


def shortage(needed_by_batch: int, workers: int) -> str | None:
    """Why the batches of a loader can't go through shared memory, as a line for the user; None if they can.

    The processes of a machine that train together (LOCAL_WORLD_SIZE) share it evenly.
    """
    free = free_shared_memory()
    batches = PREFETCHED * workers + IN_USE
    needed = batches * needed_by_batch * LOADERS * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
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


def _from_arrays(arrays: list[np.ndarray], *rest: Any) -> Batch:
    images, boxes, labels, ignore = map(torch.from_numpy, arrays)
    return Batch(images.permute(0, 3, 1, 2), boxes, labels, ignore, *rest)
