"""Files that are written whole or not at all: temporary name, fsync, rename."""

import contextlib
import inspect
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yoloyard.errors import UsageError, UserError

LOCK_SECONDS = 8.0  # workers of a killed run end, and its lock with them, within 5 seconds


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place.

    A reader sees the old file or the new one, never a part. Raises UserError if the disk is full or not writable;
    the old file is then untouched.
    """
    # Containers that share a disk may have equal process numbers.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # clearing away must not hide the reason
            temporary.unlink()


def write_whole_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all. What a file's name has of other encodings is escaped."""
    write_whole(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "backslashreplace")))


def write_whole_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder beside `path`, then put it in the place of `path`.

    Only between two renames is there no folder `path`; `restore_whole_folder` then finds the old one.
    """
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    try:
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
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fill_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder in the empty folder `path`, then move what it holds up, files last.

    The folder stays the same one: it may be where a disk is mounted, or where a shell is.
    """
    temporary = path / ".new.tmp"
    try:
        temporary.mkdir()
        write(temporary)
        for part in sorted(temporary.iterdir(), key=lambda each: each.is_file()):
            _sync(part)
            part.rename(path / part.name)
        _sync_folder(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def restore_whole_folder(path: Path) -> None:
    """Undo a `write_whole_folder` that was killed between its two renames. Only for who alone writes there."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)


def whole_folder(path: Path) -> Path:
    """The folder to read `path` from: between the two renames of `write_whole_folder` it is the old one."""
    old = path.with_name(f".{path.name}.old")
    return old if old.exists() and not path.exists() else path


class RunLock:
    """Keeps other runs out of a run folder, from `take` until the context is left or the process ends, however it does.

    `say` gets a line where the disk has no locks.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._held = contextlib.ExitStack()

    def take(self, folder: Path) -> None:
        """Lock `folder`. Raises UserError if another run is at work there."""
        from filelock import FileLock, Timeout

        options: dict[str, Any] = {}
        if "fallback_to_soft" in inspect.signature(FileLock.__init__).parameters:
            options["fallback_to_soft"] = False  # to a file, which a killed process would leave behind
        try:
            self._held.enter_context(FileLock(folder / ".lock", timeout=LOCK_SECONDS, **options))
        except Timeout as error:
            raise UserError(
                f"{folder} is in use: another run writes to it. Wait for its end or stop it, or give this run another "
                "--name"
            ) from error
        except (OSError, NotImplementedError) as error:
            self._say(f"{folder}: no lock can be had there ({error}); take care that no other run writes to it")

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()


def new_run_folder(project: Path, name: str, exist_ok: bool = False) -> Path:
    """Make the folder `project/name`, or `name-2`, `name-3` ... where there is one already (unless `exist_ok`)."""
    if name in ("", ".", "..") or os.sep in name:
        raise UsageError(f"--name {name!r} must be a plain name; --project says in which folder")
    folder, number = project / name, 1
    try:
        project.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir(exist_ok=exist_ok)
                return folder
            except FileExistsError:
                number += 1
                folder = project / f"{name}-{number}"
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """The message for a failed write of `path`."""
    return UserError(f"cannot write {path}: {error.strerror or error}. What was saved before is untouched.")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # some network file systems refuse it; the file itself is safe by then
        _sync(path)
