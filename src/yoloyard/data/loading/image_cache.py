"""Decoded training images that are kept: the few that a worker needs again soon, or all of them (`--cache`).

They are (H, W, channels) of the index's `PixelSpec` and just fit into `imgsz`; without one, where tiles are cut from
them, they have their full size. JPEGs are decoded at a half or less if that still has enough pixels, which is quicker
and looks the same. Validation keeps none, but for its tiles, and decodes them in full.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yoloyard.common.cores import map_in_threads, usable_cores
from yoloyard.common.errors import UserError
from yoloyard.common.files import write_whole
from yoloyard.common.image_size import ImageSize, shape_of, size_text
from yoloyard.data.index.index import Index, stamps
from yoloyard.data.loading.limits import free_memory
from yoloyard.data.pixels import channels
from yoloyard.data.pixels.augment import resized_shape
from yoloyard.data.pixels.decode import decode_image, largest_reduction, read_size
from yoloyard.data.store import Store, alone

log = logging.getLogger(__name__)

IMAGES_OF_A_SAMPLE = 8  # two mosaics, blended; all of them must stay as they are meanwhile
USABLE_MEMORY_SHARE = 0.9  # of what is free; the rest is for the training itself
USABLE_DISK_SHARE = 0.95
# A file's name is a digest of what decides its content, so one that is mapped never changes. Few are kept, for they are
# large; on a local disk, one in use stays readable even when it is removed.
DECODED = Store("decoded", ".pixels", version=4, kept=4)


class RecentImages:
    """Decodes images and keeps the `capacity` most recently used, at least IMAGES_OF_A_SAMPLE."""

    def __init__(self, index: Index, imgsz: ImageSize, capacity: int) -> None:
        self.index, self.imgsz, self.capacity = index, imgsz, max(capacity, IMAGES_OF_A_SAMPLE)
        self._bytes = int(index.pixels.image_bytes(*shape_of(imgsz)))  # at most, of an image
        self._images: OrderedDict[int, np.ndarray] = OrderedDict()
        self._memory: dict[int, np.ndarray] = {}  # of each of them, bytes

    def __getitem__(self, position: int) -> np.ndarray:
        """The image; its pixels are overwritten once `capacity` others have been asked for after it."""
        image = self._images.pop(position, None)
        if image is None:
            # Memory that is new to a process costs as much time as the resize that fills it.
            is_full = len(self._images) == self.capacity
            memory = (
                self._memory.pop(self._images.popitem(last=False)[0]) if is_full else np.empty(self._bytes, np.uint8)
            )
            image = load_resized(self.index, position, self.imgsz, True, memory)
            self._memory[position] = memory
        self._images[position] = image
        return image


class RecentFullImages:
    """Decodes images of full size and keeps the most recently used in so many bytes, at least the last one."""

    def __init__(self, index: Index, most_bytes: int) -> None:
        self.index, self.most_bytes = index, most_bytes
        self._images: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getitem__(self, position: int) -> np.ndarray:
        """The image, not to be written to."""
        image = self._images.pop(position, None)
        if image is None:
            others = self.most_bytes - int(self.index.pixels.image_bytes(*self.index.sizes[position].tolist()))
            while self._images and sum(each.nbytes for each in self._images.values()) > others:
                self._images.popitem(last=False)
            image = load_resized(self.index, position, None)
        self._images[position] = image
        return image


class AllImages:
    """All images of an index end to end in `pixels` (bytes,), which every worker reads; not to be written to."""

    pixels: torch.Tensor | np.ndarray

    def __init__(self, index: Index, imgsz: ImageSize | None) -> None:
        self.spec, self.imgsz = index.pixels, imgsz
        self.shapes = np.array([resized_shape(height, width, imgsz) for height, width in index.sizes.tolist()])
        self.offsets = np.cumsum([0, *self.spec.image_bytes(*self.shapes.astype(np.int64).T)], dtype=np.int64)
        self.bytes = int(self.offsets[-1])

    def __getitem__(self, position: int) -> np.ndarray:
        height, width = self.shapes[position]
        memory = np.asarray(self.pixels)[self.offsets[position] : self.offsets[position + 1]]
        return memory.view(self.spec.dtype).reshape(height, width, self.spec.channels)

    def require(self, cache: str, free: int, share: float, rest: str) -> None:
        """Raises UserError if they need more than this share of the bytes that are free."""
        if self.bytes > share * free:
            raise UserError(
                f"--cache {cache} needs {self.bytes / 2**30:.1f} GiB for {len(self.shapes)} images at "
                f"{f'{size_text(self.imgsz)} px' if self.imgsz else 'full size'}, "
                f"but only {free / 2**30:.1f} GiB {rest}"
            )


class TileImages:
    """The tiles of an index that is `tiled`, cut from `images`, which are whole ones of full size."""

    def __init__(self, index: Index, imgsz: ImageSize, images: RecentImages | RecentFullImages | AllImages) -> None:
        assert index.tiling is not None
        self.tiling, self.imgsz, self.images = index.tiling, imgsz, images

    def __getitem__(self, position: int) -> np.ndarray:
        """The tile, scaled as its specification says, in memory of its own."""
        left, top, right, bottom = self.tiling.crops[position].tolist()
        tile = self.images[int(self.tiling.sources[position])][top:bottom, left:right]
        return channels.resize(tile, self.tiling.spec.scaled_shape(bottom - top, right - left, self.imgsz))


class DiskImages(AllImages):
    """All images of an index in a file that each process maps for itself."""

    def map(self, path: Path) -> DiskImages:
        """These images from a file. Raises OSError or ValueError if there is none or it is damaged."""
        self.path, self.pixels = path, np.memmap(path, np.uint8, "r")
        if len(self.pixels) != self.bytes:
            raise ValueError(f"{path} has another length than it was saved with")
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"pixels": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.map(self.path)


def cached_in_memory(index: Index, imgsz: ImageSize | None, shared: bool) -> AllImages:
    """All images in one block of memory. Raises UserError if they don't fit, or an image can't be read.

    `shared`: the workers are not forked, so the block must lie in shared memory to reach them.
    """
    images = AllImages(index, imgsz)
    rest = f"of {'shared ' if shared else ''}memory are free; use --cache disk"
    images.require("ram", free_memory(shared), USABLE_MEMORY_SHARE, rest)
    images.pixels = torch.empty(images.bytes, dtype=torch.uint8)
    if shared:
        images.pixels.share_memory_()

    def fill(position: int) -> None:
        load_resized(index, position, imgsz, True, images[position].reshape(-1).view(np.uint8))

    map_in_threads(fill, range(len(index)), usable_cores(), at_once=1)
    return images


def cached_on_disk(index: Index, imgsz: ImageSize | None) -> DiskImages:
    """All images in a file of the user's cache folder, into which they are decoded first if they aren't there yet.

    Of several processes that need the same ones, one decodes and the others wait. A file is put in place when it is
    whole; what an interrupted process has left is removed. A line says where many images are decoded.
    Raises UserError if there is not enough space, the folder can't be written, or an image can't be read.
    """
    images = DiskImages(index, imgsz)
    files = ((str(path), stamps(path, index.pixels)) for path in index.paths)
    path = DECODED.path((imgsz, index.pixels.as_dict(), True, index.sizes.tolist(), *files))

    def write(temporary: Path) -> None:
        rest = f"are free in {path.parent}; make room, or name another folder by YOLOYARD_CACHE"
        images.require("disk", shutil.disk_usage(path.parent).free, USABLE_DISK_SHARE, rest)
        log.info(f"decoding {len(index)} images into {path} ({images.bytes / 2**30:.1f} GiB), once for all runs")
        # Written, not mapped: on a full disk a write is refused, while a mapped page ends the process.
        with temporary.open("wb") as file:
            file.truncate(images.bytes)
            map_in_threads(partial(fill, file.fileno()), range(len(index)), usable_cores(), at_once=1)

    def fill(file: int, position: int) -> None:
        pixels, done = load_resized(index, position, imgsz, True).data.cast("B"), 0
        while done < len(pixels):
            done += os.pwrite(file, pixels[done:], int(images.offsets[position]) + done)

    with alone(path) as is_alone:
        if not DECODED.find(path, images.map):
            DECODED.make_room(path, is_alone)
            write_whole(path, write)
            images.map(path)
    return images


def load_resized(
    index: Index, position: int, imgsz: ImageSize | None, reduced: bool = False, memory: np.ndarray | None = None
) -> np.ndarray:
    """An image that just fits into `imgsz`, or of full size, written into `memory` (bytes,) if that is given.

    Raises UserError naming a file that can't be read or that has changed.
    """
    path = index.paths[position]
    height, width = index.sizes[position].tolist()
    shape = resized_shape(height, width, imgsz)
    reduction = largest_reduction(max(height, width), max(shape)) if reduced else 1
    image = decode_image(path, reduction, pixels=index.pixels)
    # Only JPEGs can be reduced.
    if image.shape[:2] not in ((height, width), (math.ceil(height / reduction), math.ceil(width / reduction))):
        now_height, now_width = read_size(path)
        raise UserError(f"{path} has changed: it was {width}x{height} pixels and is {now_width}x{now_height}")
    if memory is None:
        return image if image.shape[:2] == shape else channels.resize(image, shape)
    size = image.dtype.itemsize * image.shape[2] * shape[0] * shape[1]
    return channels.resize(image, shape, memory[:size].view(image.dtype).reshape(*shape, image.shape[2]))
