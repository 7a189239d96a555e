"""Files that are written whole or not at all: temporary name, fsync, rename."""

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import re
import resource
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from yoloyard.common.errors import UsageError, UserError

log = logging.getLogger(__name__)

RUN_MARK = ".yoloyard-run"  # a file in every folder of results; empty, or the id of the launch that writes there
NAME_BYTES = 255  # of a file's name, on nearly all disks
EXPORTED_FILES = (".onnx", ".xml", ".pt2", ".torchscript")  # suffixes of networks that other runtimes compute
LOCK_SECONDS = 8.0  # workers of a killed run end, and its lock with them, within 5 seconds


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place: readers see the old one or the new.

    Raises UserError if the disk is full or not writable; the old file is then untouched.
    """
    # Containers that share a disk may have equal process numbers. A legal name may have no room for more letters.
    temporary = path.with_name(f".{path.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with _writing(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync_folder(path.parent)


def write_whole_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all. Parts of file names that are not UTF-8 are escaped."""
    write_whole(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "backslashreplace")))


def write_soon(path: Path, content: bytes) -> None:
    """Write a small file that nothing depends on and that is soon written again: readers see the old one or the new.

    Nobody waits for the disk. Where it can't be written, a line says so, once.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        log.warning(f"cannot write {path}: {error.strerror or error}; it is tried again", extra={"once": True})
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_whole_folder(path: Path, write: Callable[[Path], object], former: Path | None = None) -> None:
    """Let `write` fill a temporary folder beside `path`, then replace `path` with it; the old one becomes `former`.

    Without `former` the old one is removed. Between two renames there is no folder `path`; `restore_whole_folder` then
    finds the old one.
    """
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    with _writing(path, temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        for file in temporary.iterdir():
            _sync(file)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        temporary.rename(path)
        _sync_folder(path.parent)
        if former is not None and old.exists():
            shutil.rmtree(former, ignore_errors=True)
            old.rename(former)
        shutil.rmtree(old, ignore_errors=True)


def fill_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder in the empty folder `path`, then move its content up, files last.

    The folder stays the same one: a disk may be mounted there, or a shell may be in it.
    """
    temporary = path / ".new.tmp"
    with _writing(path, temporary):
        temporary.mkdir()
        write(temporary)
        for part in sorted(temporary.iterdir(), key=lambda each: each.is_file()):
            _sync(part)
            part.rename(path / part.name)
        _sync_folder(path)


def restore_whole_folder(path: Path) -> None:
    """Undo a `write_whole_folder` that was killed between its two renames. No one else may write there."""
    if (found := whole_folder(path)) != path:
        found.rename(path)


def whole_folder(path: Path) -> Path:
    """The folder to read `path` from: between the two renames of `write_whole_folder` it is the old one."""
    old = path.with_name(f".{path.name}.old")
    return old if old.exists() and not path.exists() else path


class RunLock(contextlib.ExitStack):
    """Keeps other runs out of a run folder, from `take` until the context ends or the process, however it ends.

    Where the disk has no locks, a line says so.
    """

    def take(self, folder: Path, seconds: float = 0.0) -> None:
        """Lock `folder`. Raises UserError if another run is still at work there after LOCK_SECONDS or `seconds`."""
        # flock itself: releases of filelock take a disk without locks for one that is locked.
        until = time.monotonic() + max(seconds, LOCK_SECONDS)
        try:
            file = self.enter_context((folder / ".lock").open("a"))
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except (BlockingIOError, PermissionError) as error:
                    if time.monotonic() > until:
                        raise UserError(
                            f"{folder} is in use: another run writes to it. Wait for its end or stop it, or give this "
                            "run another --name"
                        ) from error
                    time.sleep(0.1)
        except OSError as error:
            log.info(f"{folder}: no lock can be had there ({error}); take care that no other run writes to it")


def is_locked(folder: Path) -> bool | None:
    """Does a run write to `folder` at this moment? None where that can't be known: the disk has no locks."""
    try:
        with (folder / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError) as error:
        return isinstance(error, BlockingIOError)
    except OSError:
        return None
    return False


def new_run_folder(project: Path, name: str, exist_ok: bool = False) -> Path:
    """Make the folder `project/name`, or `name-2`, `name-3` ... where it exists already (unless `exist_ok`).

    A hidden file `RUN_MARK` marks it as results, so that no search for images takes these for input.
    """
    if name in ("", ".", "..") or os.sep in name:
        raise UsageError(f"--name {name!r} must be a plain name; --project says in which folder")
    folder = project / name
    with _writing(folder):
        project.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(2):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(exist_ok=exist_ok)
                break
            folder = project / f"{name}-{number}"
        if not (folder / RUN_MARK).exists():
            (folder / RUN_MARK).touch()
    return folder


def link_or_copy(file: Path, target: Path) -> None:
    """Make `target` another name of `file`, which must never be changed in place; a copy where there are no links."""
    try:
        os.link(file, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, target)


def free_name(path: str, suffix: str, taken: set[str]) -> str:
    """`path`, or `path-2`, `path-3` ... where `taken` has it already; `taken` gets it.

    Its last name is cut where it would be longer with `suffix` than a disk takes.
    """
    folder, name = os.path.split(path)
    number, free = 1, ""
    while not free or free in taken:
        stem, ending = name, "" if number == 1 else f"-{number}"
        while len(os.fsencode(stem + ending + suffix)) > NAME_BYTES:
            stem = stem[:-1]
        number, free = number + 1, os.path.join(folder, stem + ending)
    taken.add(free)
    return free


def cannot_write(path: Path, error: OSError) -> UserError:
    """The message for a failed write of `path`."""
    return UserError(f"cannot write {path}: {error.strerror or error}. What was saved before is untouched.")


def raise_file_limit() -> None:
    """Let this process open as many files as the system permits: macOS allows 256 by default. For commands."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # then it stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def is_full(error: BaseException) -> bool:
    """Did a write fail because nothing can be written to that disk any more, under any name?"""
    reason = error.__cause__
    return isinstance(reason, OSError) and reason.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextlib.contextmanager
def plain_path(path: Path, has_suffix: bool = True) -> Iterator[str]:
    """Within the context, another path of `path`, existing or not: short, in plain letters, with its suffix or none.

    For libraries that don't accept every legal name: not in UTF-8, `10:20.mp4` (a protocol), `%d.mp4` (a pattern).
    """
    suffix = path.suffix if has_suffix and re.fullmatch(r"\.[a-zA-Z0-9]+", path.suffix) else ""
    with tempfile.TemporaryDirectory(prefix="yoloyard-") as folder:
        link = Path(folder, f"file{suffix}")
        link.symlink_to(path.absolute())
        yield str(link)


@contextlib.contextmanager
def _writing(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Say which write failed, and remove what is left of `temporary`, a file or a folder."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:  # what can't be removed must not hide the reason
            shutil.rmtree(temporary, ignore_errors=True)
            with contextlib.suppress(OSError):
                temporary.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # some network file systems refuse it; the file itself is safe by then
        _sync(path)
