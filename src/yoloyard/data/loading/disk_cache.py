"""All images of an index decoded in one file (`--cache disk`), which all workers and processes map.

The file is in the user's cache folder, beside the indexes. Its name is a digest of what decides its content, so that
changed images, or another size, have another file; one that is mapped never changes.
"""

from __future__ import annotations

import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from yoloyard.common.cores import usable_cores
from yoloyard.common.errors import UserError
from yoloyard.common.files import cannot_write, write_whole
from yoloyard.data.index.index import Index
from yoloyard.data.loading.image_cache import Block, load_resized
from yoloyard.data.store import Store, alone, stamp

log = logging.getLogger(__name__)

# Few are kept, for they are large; on a local disk, one in use stays readable even when it is removed.
DECODED = Store("decoded", ".pixels", version=2, kept=4)
USABLE_DISK_SHARE = 0.95  # of what is free; the rest is for the run's own files


class DiskImages:
    """All images of an index, uint8 RGB (H, W, 3), mapped from a file; not to be written to."""

    def __init__(self, path: Path, block: Block) -> None:
        self.path, self.block = path, block
        self.pixels = np.memmap(path, np.uint8, "r")

    def __getitem__(self, position: int) -> np.ndarray:
        return self.block.image(self.pixels, position)

    def __reduce__(self) -> tuple[object, ...]:
        return DiskImages, (self.path, self.block)  # a worker that is spawned maps the same file


def cached_on_disk(index: Index, imgsz: int, reduced: bool = False) -> DiskImages:
    """The images of an index from the cache, where they are decoded first if they aren't there yet.

    Of several processes that need the same ones, one decodes and the others wait. A file is put in place when it is
    whole; what an interrupted process has left is removed. A line says where many images are decoded.
    Raises UserError if there is not enough space, the folder can't be written, or an image can't be read.
    """
    block = Block(index, imgsz)
    images = zip(map(str, index.paths), map(stamp, index.paths), index.sizes.tolist(), strict=True)
    path = DECODED.path((imgsz, reduced, *images))

    def read(path: Path) -> DiskImages:
        if path.stat().st_size != len(block):
            raise ValueError(f"{path} has another length than it was saved with")
        return DiskImages(path, block)

    found = DECODED.find(path, read)
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    with alone(path) as is_alone:
        found = DECODED.find(path, read)  # another process may have made it meanwhile
        if found is None:
            DECODED.make_room(path, is_alone)
            _require_space(path.parent, len(block), len(index), imgsz)
            log.info(f"decoding {len(index)} images into {path} ({len(block) / 2**30:.1f} GiB), once for all runs")
            write_whole(path, lambda temporary: _write(temporary, index, imgsz, block, reduced))
    return found or read(path)


def _require_space(folder: Path, needed: int, count: int, imgsz: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > USABLE_DISK_SHARE * free:
        raise UserError(
            f"--cache disk needs {needed / 2**30:.1f} GiB for {count} images at {imgsz} px, but only "
            f"{free / 2**30:.1f} GiB are free in {folder}; make room, or name another folder by YOLOYARD_CACHE"
        )


def _write(path: Path, index: Index, imgsz: int, block: Block, reduced: bool) -> None:
    """Decode in threads, each image to its place in the file `path`."""
    # Written, not mapped: on a full disk a write is refused, while a mapped page ends the process.
    with path.open("wb") as file, ThreadPoolExecutor(usable_cores()) as threads:
        file.truncate(len(block))

        def fill(position: int) -> None:
            pixels, done = load_resized(index, position, imgsz, reduced).data.cast("B"), 0
            while done < len(pixels):
                done += os.pwrite(file.fileno(), pixels[done:], int(block.offsets[position]) + done)

        for _ in threads.map(fill, range(len(index))):
            pass  # waits, and raises what a thread raised; the others' work is then dropped
