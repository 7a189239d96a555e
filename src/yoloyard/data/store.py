"""Files in the user's cache folder: what can be made again, each under a digest of all that it follows from.

A file is there whole or not at all, and one that is mapped never changes: other content has another name.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from yoloyard.common.errors import UserError
from yoloyard.common.files import write_whole
from yoloyard.common.log import ONCE

log = logging.getLogger(__name__)

STALE_SECONDS = 86400  # a lock or an unfinished file that is older belongs to nobody

_DTYPES = {"BOOL": np.bool_, "U8": np.uint8, "I32": np.int32, "I64": np.int64, "F32": np.float32}

Value = TypeVar("Value")


@dataclass(frozen=True)
class Store:
    """One kind of files in the cache."""

    name: str  # of its folder
    suffix: str
    version: int  # raise it whenever what is stored, or what it means, changes
    kept: int  # files; of more, those go that were not used for longest

    @property
    def folder(self) -> Path:
        """Where they are."""
        return cache_folder(self.name)

    def path(self, parts: Iterable[object]) -> Path:
        """The file for what follows from `parts`, of which JSON can be made."""
        digest = hashlib.sha256(str(self.version).encode())
        for part in parts:
            digest.update(b"\n" + json.dumps(part).encode())
        return self.folder / f"{digest.hexdigest()[:32]}{self.suffix}"

    def find(self, path: Path, read: Callable[[Path], Value]) -> Value | None:
        """What `read` makes of a file; None if there is none or it is damaged. Its time of use is noted."""
        try:
            value = read(path)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
        with contextlib.suppress(OSError):  # a cache that is only for reading is as good
            os.utime(path)
        return value

    def write(self, path: Path, write: Callable[[Path], object], is_alone: bool = False) -> None:
        """Let `write` fill a temporary file that then becomes `path`; a line says where that can't be done."""
        self.make_room(path, is_alone)
        try:
            write_whole(path, write)
        except UserError as error:
            warn_not_kept(path, error)

    def make_room(self, path: Path, is_alone: bool) -> None:
        """Remove what interrupted processes have left, and all files but those used last; `path` is counted in.

        `is_alone`: nobody else writes `path` (see `alone`), so that what is unfinished of it is left over.
        """
        others = sorted((each for each in path.parent.glob(f"*{self.suffix}") if each != path), key=_changed)
        gone = others[: max(0, len(others) - self.kept + 1)]
        for each in [*path.parent.glob(".*.tmp"), *path.parent.glob("*.lock")]:  # a young lock may be held
            is_own = is_alone and each.name.startswith(f".{path.name[:50]}.")
            if is_own or time.time() - _changed(each) > STALE_SECONDS:
                gone.append(each)
        for each in gone:
            with contextlib.suppress(OSError):  # another process removes files, too
                each.unlink()


def cache_folder(name: str) -> Path:
    """Where files of a kind are kept: YOLOYARD_CACHE, else XDG_CACHE_HOME or ~/.cache, /yoloyard; in it `name`."""
    shared = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    root = os.environ.get("YOLOYARD_CACHE") or os.path.join(shared, "yoloyard")
    return Path(os.path.abspath(root), name)


def warn_not_kept(path: Path, error: Exception) -> None:
    """Log that a file of the cache was not written; all kinds are in one folder and have one line, shown once."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    reason = (cause.strerror if isinstance(cause, OSError) else None) or cause
    log.info(
        f"the cache {path.parent.parent} can't be written ({reason}), so images and labels are read again at each "
        "start; make room or name another folder by YOLOYARD_CACHE",
        extra=ONCE,
    )


@contextlib.contextmanager
def alone(path: Path, waiting: str = "") -> Iterator[bool]:
    """Keep other processes from making `path` too. False where that can't be: nowhere to write, or no locks there.

    `waiting`: a line for the user while another process makes it.
    """
    from filelock import FileLock, Timeout

    with contextlib.ExitStack() as held:
        is_alone = False
        with contextlib.suppress(OSError, NotImplementedError):  # not writable, or a file system without locks
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_name(f"{path.name}.lock"))
            try:
                held.enter_context(lock.acquire(timeout=0 if waiting else -1))
            except Timeout:
                log.info(waiting)
                held.enter_context(lock.acquire())
            is_alone = True
        yield is_alone


def stamp(path: Path | str) -> list[int]:
    """Length in bytes and time of change in ns of a file, by which a changed one is told; empty if it isn't there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns % 2**63]  # some file systems have years that need more bits, or a sign


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], facts: object) -> None:
    """Write arrays, and `facts` of which JSON can be made, to a safetensors file."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, {"facts": json.dumps(facts)})


def map_arrays(path: Path) -> tuple[dict[str, np.ndarray], Any]:
    """The arrays of a file, mapped so that all processes share them, and its facts. Raises ValueError if it is cut."""
    content = np.memmap(path, np.uint8, "r")  # safetensors' own reader copies
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    facts = json.loads(header.pop("__metadata__")["facts"])
    if start + max(each["data_offsets"][1] for each in header.values()) != len(content):
        raise ValueError(f"{path} has another length than it was saved with")
    arrays = {}
    for name, each in header.items():
        first, last = each["data_offsets"]
        arrays[name] = content[start + first : start + last].view(_DTYPES[each["dtype"]]).reshape(each["shape"])
    return arrays, facts


def _changed(path: Path) -> float:
    """When a file was changed or used last, in seconds since 1970; now, if another process has just removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
