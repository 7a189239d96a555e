"""Decoded pictures kept in memory: the few that a worker needs again soon, or all of them (`--cache ram`)."""

from __future__ import annotations

import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from yoloyard.data.augment import resize_to, resized_shape
from yoloyard.data.decode import decode_image
from yoloyard.data.index import Index
from yoloyard.data.shared_memory import free_shared_memory
from yoloyard.errors import UserError

SPARE_MEMORY = 0.9  # of what is free; the rest is for the training itself


class RecentImages:
    """Decodes pictures, long side `imgsz`, and keeps the `capacity` most recently used."""

    def __init__(self, index: Index, imgsz: int, capacity: int) -> None:
        self.index, self.imgsz, self.capacity = index, imgsz, capacity
        self._images: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getitem__(self, position: int) -> np.ndarray:
        image = self._images.pop(position, None)
        if image is None:
            image = load_resized(self.index, position, self.imgsz)
        self._images[position] = image
        if len(self._images) > self.capacity:
            self._images.popitem(last=False)
        return image


class AllImages:
    """All pictures of an index, decoded, long side `imgsz`, in one block of memory that every worker reads.

    Raises UserError if they don't fit into the memory that is free. `shared`: the workers are not forked, so the
    block must lie in shared memory to reach them.
    """

    def __init__(self, index: Index, imgsz: int, shared: bool) -> None:
        self.shapes = [resized_shape(int(height), int(width), imgsz) for height, width in index.sizes]
        lengths = [height * width * 3 for height, width in self.shapes]
        self.offsets = np.cumsum([0, *lengths], dtype=np.int64)
        needed, free = int(self.offsets[-1]), free_memory(shared)
        if free is not None and needed > SPARE_MEMORY * free:
            raise UserError(
                f"--cache ram needs {needed / 2**30:.1f} GiB for {len(index)} images at {imgsz} px, but only "
                f"{free / 2**30:.1f} GiB of {'shared ' if shared else ''}memory are free; leave --cache out"
            )
        self.pixels = torch.empty(needed, dtype=torch.uint8)
        if shared:
            self.pixels.share_memory_()

        def fill(position: int) -> None:
            np.copyto(self[position], load_resized(index, position, imgsz))

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for _ in threads.map(fill, range(len(index))):
                pass  # waits, and raises what a thread raised

    def __getitem__(self, position: int) -> np.ndarray:
        height, width = self.shapes[position]
        block = self.pixels[int(self.offsets[position]) : int(self.offsets[position + 1])]
        return block.numpy().reshape(height, width, 3)


def load_resized(index: Index, position: int, imgsz: int) -> np.ndarray:
    """A picture as uint8 RGB (H, W, 3) with its long side `imgsz`. Raises UserError naming an unreadable file."""
    path = index.paths[position]
    image = decode_image(path)
    height, width = index.sizes[position]
    if image.shape[:2] != (height, width):
        raise UserError(f"{path} has changed: it was {width}x{height} pixels and is {image.shape[1]}x{image.shape[0]}")
    return resize_to(image, imgsz)


def free_memory(shared: bool = False) -> int | None:
    """Bytes that this process can still take, a container's limit included; None where the system doesn't say."""
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        return None
    try:
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text().strip()
        if most != "max":
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / "memory.current").read_text()) - int(statistics["inactive_file"])
            limits.append(int(most) - used)
    except OSError:
        most = "max"  # no control groups here: no limit
    if shared and (free := free_shared_memory()) is not None:
        limits.append(free)
    # Processes that train together on this machine each keep their own.
    return min(limits) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if limits else None
