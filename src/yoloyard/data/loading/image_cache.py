"""Decoded images that are kept: the few that a worker needs again soon, or all of them (`--cache ram`, `disk`).

All are uint8 RGB (H, W, 3) with their long side `imgsz`. `reduced` is for training: JPEGs are decoded at a half or less
if that still has `imgsz` pixels, which is quicker and looks the same. Validation decodes them in full.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch

from yoloyard.common.cores import usable_cores
from yoloyard.common.errors import UserError
from yoloyard.data.index.index import Index
from yoloyard.data.loading.shared_memory import free_shared_memory
from yoloyard.data.pixels.augment import resized_shape
from yoloyard.data.pixels.decode import decode_image, image_size, largest_reduction

IMAGES_OF_A_SAMPLE = 8  # two mosaics, blended; all of them must stay as they are meanwhile
SPARE_MEMORY = 0.9  # of what is free; the rest is for the training itself


class RecentImages:
    """Decodes images and keeps the `capacity` most recently used."""

    def __init__(self, index: Index, imgsz: int, capacity: int, reduced: bool = False) -> None:
        self.index, self.imgsz, self.capacity, self.reduced = index, imgsz, capacity, reduced
        self._images: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getitem__(self, position: int) -> np.ndarray:
        """The image; its pixels are overwritten once `capacity` others have been asked for after it."""
        image = self._images.pop(position, None)
        if image is None:
            image = load_resized(self.index, position, self.imgsz, self.reduced, self._memory())
        self._images[position] = image
        if len(self._images) > self.capacity:
            self._images.popitem(last=False)
        return image

    def _memory(self) -> np.ndarray | None:
        """Bytes (3 * imgsz * imgsz,) for one more image: new ones, or those of an image that is dropped for it.

        Memory that is new to a process costs as much time as the resize that fills it.
        """
        if self.capacity < IMAGES_OF_A_SAMPLE:
            return None
        if len(self._images) < self.capacity:
            return np.empty(3 * self.imgsz**2, np.uint8)
        return self._images.popitem(last=False)[1].base


class Block:
    """Where each image of an index lies in one block of bytes."""

    def __init__(self, index: Index, imgsz: int) -> None:
        self.shapes = np.array([resized_shape(height, width, imgsz) for height, width in index.sizes.tolist()])
        self.offsets = np.cumsum([0, *(3 * self.shapes.prod(axis=1))], dtype=np.int64)

    def __len__(self) -> int:
        """Bytes of all images together."""
        return int(self.offsets[-1])

    def image(self, pixels: np.ndarray, position: int) -> np.ndarray:
        """The image (H, W, 3) at `position`, a view of `pixels` (bytes,)."""
        height, width = self.shapes[position]
        return pixels[self.offsets[position] : self.offsets[position + 1]].reshape(height, width, 3)


class AllImages:
    """All images of an index in one block of memory that every worker reads.

    Raises UserError if they don't fit into the memory that is free. `shared`: the workers are not forked, so the
    block must lie in shared memory to reach them.
    """

    def __init__(self, index: Index, imgsz: int, shared: bool, reduced: bool = False) -> None:
        self.block = Block(index, imgsz)
        needed, free = len(self.block), free_memory(shared)
        if needed > SPARE_MEMORY * free:
            raise UserError(
                f"--cache ram needs {needed / 2**30:.1f} GiB for {len(index)} images at {imgsz} px, but only "
                f"{free / 2**30:.1f} GiB of {'shared ' if shared else ''}memory are free; use --cache disk"
            )
        self.pixels = torch.empty(needed, dtype=torch.uint8)
        if shared:
            self.pixels.share_memory_()

        def fill(position: int) -> None:
            load_resized(index, position, imgsz, reduced, self[position].reshape(-1))

        with ThreadPoolExecutor(usable_cores()) as threads:
            for _ in threads.map(fill, range(len(index))):
                pass  # waits, and raises what a thread raised

    def __getitem__(self, position: int) -> np.ndarray:
        return self.block.image(self.pixels.numpy(), position)


def load_resized(
    index: Index, position: int, imgsz: int, reduced: bool = False, memory: np.ndarray | None = None
) -> np.ndarray:
    """An image with its long side `imgsz`, written into `memory` (bytes,) if that is given.

    Raises UserError naming a file that can't be read or that has changed.
    """
    path = index.paths[position]
    height, width = index.sizes[position].tolist()
    reduction = largest_reduction(max(height, width), imgsz) if reduced else 1
    image = decode_image(path, reduction)
    # Only JPEGs can be reduced.
    if image.shape[:2] not in ((height, width), (math.ceil(height / reduction), math.ceil(width / reduction))):
        now_height, now_width = image_size(path)
        raise UserError(f"{path} has changed: it was {width}x{height} pixels and is {now_width}x{now_height}")
    shape = resized_shape(height, width, imgsz)
    memory = np.empty(3 * shape[0] * shape[1], np.uint8) if memory is None else memory
    out = memory[: 3 * shape[0] * shape[1]].reshape(*shape, 3)
    cv2.resize(image, shape[::-1], dst=out, interpolation=cv2.INTER_LINEAR)
    return out


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
    # Processes that train together on this machine each keep their own.
    return min(limits) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
