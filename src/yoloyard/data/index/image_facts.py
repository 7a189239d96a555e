"""What each image file of a data set is: its size, or why it can't be used, and what its copies are found by.

Every file is read and decoded as a whole once, so that damage is found before training; the facts are kept in a cache.
N images.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yoloyard.common.cores import usable_cores
from yoloyard.common.errors import UserError
from yoloyard.common.files import write_whole
from yoloyard.common.threads import map_in_threads
from yoloyard.data.audit.problems import Problem
from yoloyard.data.index.not_kept import warn_not_kept
from yoloyard.data.pixels.decode import decode_thumbnail, image_size

log = logging.getLogger(__name__)

FORMAT_VERSION = 1  # raise it whenever what is stored, or what counts as damage, changes
SMALLEST_SIDE = 10  # pixels; below it nothing can be seen
THUMBNAIL_SIDE = 32
KEPT_CACHES = 50
UNREAD = bytes(16)
TOLD_FROM = 1000  # so many images take long enough for a line


@dataclass(frozen=True)
class ImageFacts:
    """One image file."""

    height: int  # pixels, EXIF orientation applied; 0 where the image can't be used
    width: int
    digest: bytes  # BLAKE2b of the file, 16 bytes; zeros where it can't be read
    thumbnail: np.ndarray  # uint8 grey (32, 32); zeros where the image can't be used
    problem: Problem | None = None  # why it can't be used


def examine(paths: Sequence[Path], folder: Path | None = None, name: str = "") -> list[ImageFacts]:
    """The facts of N image files, in their order; decoded are only those that have changed since they were kept.

    `folder` is where the facts are kept, None: nowhere. A cache that can't be read is done without; a line
    says so where it can't be written.
    A line comes before many images are read for the first time; `name` is what it calls them.
    """
    keys = [os.fsencode(path) for path in paths]
    stamps = map_in_threads(_stamp, paths, usable_cores())
    file = None if folder is None else folder / f"{_folders_digest(keys)}.npz"
    kept = {} if file is None else _read(file)
    known = {
        position: kept[key][1]
        for position, (key, stamp) in enumerate(zip(keys, stamps, strict=True))
        if stamp is not None and key in kept and kept[key][0] == stamp
    }
    fresh = [position for position in range(len(paths)) if position not in known]
    if len(fresh) >= TOLD_FROM:
        log.info(f"examining {len(fresh):,} images{f' of {name}' if name else ''} for the first time")
    # Images may be large and few, so that all threads should have some.
    new_facts = map_in_threads(_examine_file, [paths[position] for position in fresh], usable_cores(), at_once=4)
    known |= zip(fresh, new_facts, strict=True)
    facts = [known[position] for position in range(len(paths))]
    if file is not None and fresh:
        new = {
            key: (stamp, each)
            for key, stamp, each in zip(keys, stamps, facts, strict=True)
            if stamp is not None and each.digest != UNREAD  # whether a file may be read changes without a trace in it
        }
        # Other lists name images of the same folders, as train.txt and val.txt do.
        others = {key: entry for key, entry in kept.items() if key not in new and os.path.exists(key)}
        _write(file, others | new)
    return facts


def _stamp(path: Path) -> tuple[int, int] | None:
    """Length in bytes and time of change in ns; None: the file can't be looked at, so that nothing of it is kept.

    Times are those of 63 bits: some file systems have years that need more, or that lie before 1970.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns % 2**63


def _examine_file(path: Path) -> ImageFacts:
    digest = UNREAD
    try:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(error.strerror or str(error)) from error
        digest = hashlib.blake2b(data, digest_size=16).digest()
        height, width = image_size(path, data)
        if min(height, width) < SMALLEST_SIDE:
            what = f"{width}x{height} pixels, below {SMALLEST_SIDE} a side"
            return _unusable(digest, Problem("image too small", str(path), what, "image skipped"))
        thumbnail = decode_thumbnail(path, data, (height, width), THUMBNAIL_SIDE)
    except UserError as error:
        reason = str(error).removeprefix(f"cannot read the image {path}: ")
        what = f"cannot read the image: {reason}"
        return _unusable(digest, Problem("image unreadable", str(path), what, "image skipped"))
    return ImageFacts(height, width, digest, thumbnail)


def _unusable(digest: bytes, problem: Problem) -> ImageFacts:
    return ImageFacts(0, 0, digest, np.zeros((THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8), problem)


def _folders_digest(keys: Sequence[bytes]) -> str:
    folders = sorted({os.path.dirname(key) for key in keys})
    return hashlib.sha256(b"\0".join([b"%d" % FORMAT_VERSION, *folders])).hexdigest()[:32]


Entry = tuple[tuple[int, int], ImageFacts]


def _read(file: Path) -> dict[bytes, Entry]:
    """What is kept in `file` by path; nothing if there is no such file or it isn't whole."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(_entries({name: arrays[name] for name in arrays.files}))
    except Exception:  # noqa: BLE001  # a damaged archive raises whatever its bytes lead to; the files are then read again
        return {}


def _entries(arrays: dict[str, np.ndarray]) -> Iterator[tuple[bytes, Entry]]:
    problems = {int(position): Problem(*words) for position, words in json.loads(arrays["problems"].tobytes()).items()}
    columns = (arrays["stamps"].tolist(), arrays["sizes"].tolist(), arrays["digests"], arrays["thumbnails"])
    for position, (key, (length, time), (height, width), digest, thumbnail) in enumerate(
        zip(arrays["paths"].tobytes().split(b"\0"), *columns, strict=True)
    ):
        facts = ImageFacts(height, width, digest.tobytes(), thumbnail, problems.get(position))
        yield key, ((length, time), facts)


def _write(file: Path, entries: dict[bytes, Entry]) -> None:
    facts = [each for _, each in entries.values()]
    problems = {
        position: (each.problem.kind, each.problem.where, each.problem.what, each.problem.effect)
        for position, each in enumerate(facts)
        if each.problem is not None
    }
    arrays = {
        "paths": np.frombuffer(b"\0".join(entries), np.uint8),
        "stamps": np.array([stamp for stamp, _ in entries.values()], np.int64).reshape(-1, 2),
        "sizes": np.array([(each.height, each.width) for each in facts], np.int32).reshape(-1, 2),
        "digests": np.frombuffer(b"".join(each.digest for each in facts), np.uint8).reshape(-1, 16),
        "thumbnails": np.array([each.thumbnail for each in facts], np.uint8),
        "problems": np.frombuffer(json.dumps(problems).encode(), np.uint8),
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as opened:  # np.savez would append a suffix to a path
            np.savez(opened, **arrays)  # type: ignore[arg-type]

    try:
        write_whole(file, write)
    except UserError as error:
        warn_not_kept(file, error)
        return
    with contextlib.suppress(OSError):  # another process clears away, too
        for old in sorted(file.parent.glob("*.npz"), key=lambda each: each.stat().st_mtime)[:-KEPT_CACHES]:
            old.unlink()
