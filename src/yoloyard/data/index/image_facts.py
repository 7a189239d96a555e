"""What each image file of a data set is: its size, or why it can't be used, and what duplicates of it are found by.

Every file is read and decoded as a whole once, so that damage is found before training; the facts are kept in a cache.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from yoloyard.common.cores import map_in_threads, usable_cores
from yoloyard.common.errors import UserError
from yoloyard.data.audit.problems import Problem
from yoloyard.data.pixels.decode import decode_thumbnail, read_size
from yoloyard.data.store import Store, map_arrays, stamp, write_arrays

log = logging.getLogger(__name__)

IMAGE_FACTS = Store("images", ".safetensors", version=3, kept=50)  # the version also stands for what counts as damage
MIN_SIDE_PIXELS = 10  # below it nothing can be seen
THUMBNAIL_SIDE_PIXELS = 32
UNREAD = bytes(16)  # the digest of a file that can't be read
TOLD_FROM_IMAGES = 1000  # so many images take long enough for a line


@dataclass(frozen=True)
class ImageFacts:
    """One image file."""

    height: int  # pixels, EXIF orientation applied; 0 where the image can't be used
    width: int
    digest: bytes  # BLAKE2b of the file, 16 bytes; zeros where it can't be read
    thumbnail: np.ndarray  # uint8 grey (32, 32); zeros where the image can't be used
    channels: int = 0  # of the file: 1 grey, 3 colours, 4 with alpha, or others; 0 where the image can't be used
    bits: int = 0  # 8 or 16, as the file stores values
    problem: Problem | None = None  # why it can't be used


def examine(paths: Sequence[Path], name: str = "") -> list[ImageFacts]:
    """The facts of N image files, in their order; decoded are only those that have changed since they were kept.

    A line comes before many images are read for the first time; `name` is what it calls them.
    """
    keys, stamps = list(map(os.fsencode, paths)), map_in_threads(stamp, paths, usable_cores())
    # Other lists name images of the same folders, as train.txt and val.txt do.
    file = IMAGE_FACTS.path(sorted({os.path.dirname(os.fsdecode(key)) for key in keys}))
    entries = IMAGE_FACTS.find(file, _read) or {}
    pairs = dict(zip(keys, stamps, strict=True))
    fresh = {key: own for key, own in pairs.items() if not own or key not in entries or entries[key][0] != own}
    if len(fresh) >= TOLD_FROM_IMAGES:
        log.info(f"examining {len(fresh):,} images{f' of {name}' if name else ''} for the first time")
    if fresh:
        # Images may be large and few, so that all threads should have some.
        facts = map_in_threads(_examine_file, list(fresh), usable_cores(), at_once=4)
        entries |= {key: (own, each) for (key, own), each in zip(fresh.items(), facts, strict=True)}
        there = ((key, each) for key, each in entries.items() if key in pairs or os.path.exists(key))
        # Whether a file may be read changes without a trace in it.
        kept = {key: (own, each) for key, (own, each) in there if own and each.digest != UNREAD}
        IMAGE_FACTS.write(file, lambda temporary: _write(temporary, kept))
    return [entries[key][1] for key in keys]


def _examine_file(key: bytes) -> ImageFacts:
    path, digest = Path(os.fsdecode(key)), UNREAD
    try:
        data = path.read_bytes()
        digest = hashlib.blake2b(data, digest_size=16).digest()
        height, width = read_size(path, data)
        if min(height, width) >= MIN_SIDE_PIXELS:
            thumbnail, channels, bits = decode_thumbnail(path, data, (height, width), THUMBNAIL_SIDE_PIXELS)
            return ImageFacts(height, width, digest, thumbnail, channels, bits)
        kind, what = "image too small", f"{width}x{height} pixels, below {MIN_SIDE_PIXELS} a side"
    except (OSError, UserError) as error:
        reason = getattr(error, "strerror", None) or str(error).removeprefix(f"cannot read the image {path}: ")
        kind, what = "image unreadable", f"cannot read the image: {reason}"
    thumbnail = np.zeros((THUMBNAIL_SIDE_PIXELS, THUMBNAIL_SIDE_PIXELS), np.uint8)
    return ImageFacts(0, 0, digest, thumbnail, problem=Problem(kind, str(path), what, "image skipped"))


Entry = tuple[list[int], ImageFacts]  # of an image: its stamp, its facts


def _read(file: Path) -> dict[bytes, Entry]:
    arrays, problems = map_arrays(file)
    keys, stamps, sizes = arrays["paths"].tobytes().split(b"\0"), arrays["stamps"].tolist(), arrays["sizes"].tolist()
    digests, thumbnails, forms = (np.asarray(arrays[name]) for name in ("digests", "thumbnails", "forms"))
    rows = zip(keys, stamps, sizes, digests, thumbnails, forms.tolist(), strict=True)
    found = {position: Problem(*problem) for position, problem in problems.items()}
    return {
        key: (own, ImageFacts(height, width, digest.tobytes(), thumbnail, channels, bits, found.get(str(position))))
        for position, (key, own, (height, width), digest, thumbnail, (channels, bits)) in enumerate(rows)
    }


def _write(file: Path, entries: dict[bytes, Entry]) -> None:
    facts = [each for _, each in entries.values()]
    arrays: dict[str, np.ndarray] = {
        "paths": np.frombuffer(b"\0".join(entries), np.uint8),
        "stamps": np.array([own for own, _ in entries.values()], np.int64).reshape(-1, 2),
        "sizes": np.array([(each.height, each.width) for each in facts], np.int32).reshape(-1, 2),
        "forms": np.array([(each.channels, each.bits) for each in facts], np.int32).reshape(-1, 2),
        "digests": np.frombuffer(b"".join(each.digest for each in facts), np.uint8).reshape(-1, 16),
        "thumbnails": np.array([each.thumbnail for each in facts], np.uint8),
    }
    problems = {position: astuple(each.problem) for position, each in enumerate(facts) if each.problem is not None}
    write_arrays(file, arrays, problems)
