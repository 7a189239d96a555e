"""Whether the files that something was made of are still the same, told by a look at their folders alone.

Length and times of modification and of status change must be; no program can set the last one.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from yoloyard.data.store import Store

NOTES = Store("unchanged", ".json", version=2, kept=100)
# A file that is changed twice within one tick of a file system's clock has the same times after both, so nothing is
# noted as long as a file is so young.
SETTLED_SECONDS = 2.5  # FAT counts in twos


@dataclass(frozen=True)
class Sight:
    """How files looked when reading them began: these `files`, and all with these `suffixes` in `folders`."""

    folders: list[str]
    files: list[str]
    suffixes: list[str]
    state: str | None  # a digest; None: one of them couldn't be looked at


def noted(note: Path) -> str | None:
    """What was noted in the file `note`, None if there is no such file or something has changed since."""

    def read(path: Path) -> str:
        facts = json.loads(path.read_text(encoding="utf-8"))
        value = str(facts.pop("value"))
        if _state(Sight(**facts))[0] != facts["state"]:
            raise ValueError(f"{path}: something has changed")
        return value

    return NOTES.find(note, read)


def look(folders: Iterable[str], files: Iterable[str], suffixes: Iterable[str]) -> Sight:
    """Look at files before they are read.

    A folder, which need not exist, counts with its files, the names of its folders and the number of its other files.
    """
    sight = Sight(sorted(folders), sorted(files), sorted(suffixes), None)
    try:
        return replace(sight, state=_state(sight)[0])
    except OSError:
        return sight


def write_note(note: Path, value: str, before: Sight, since: float) -> None:
    """Note `value`, which follows from the content of the files that were looked at `before` they were read.

    Nothing is noted where a file may have changed after `since`, seconds since 1970 before they were listed.
    """
    try:
        state, newest = _state(before)
    except OSError:
        return  # a file has gone meanwhile; the next run reads all again
    # The times are those of the disk's own clock, which may be behind; so the files must look the same, too.
    if newest < (since - SETTLED_SECONDS) * 1e9 and state == before.state:
        NOTES.write(note, lambda temporary: temporary.write_text(json.dumps({"value": value, **asdict(before)})))


def _state(sight: Sight) -> tuple[str, int]:
    """A digest of names, lengths and times, and the newest time of status change in ns."""
    digest, newest = hashlib.blake2b(digest_size=16), 0
    suffixes = frozenset(sight.suffixes)
    for folder in sight.folders:
        rows, changed = _folder_rows(folder, suffixes)
        digest.update(os.fsencode("\0".join((folder, str(len(rows)), *rows, ""))))
        newest = max(newest, changed)
    for file in sight.files:
        status = os.stat(file)
        digest.update(os.fsencode(f"{file}\0{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\0"))
        newest = max(newest, status.st_ctime_ns)
    return digest.hexdigest(), newest


def _folder_rows(folder: str, suffixes: frozenset[str]) -> tuple[list[str], int]:
    """A text for each file and folder in `folder`, in the file system's order, and the newest status change in ns."""
    # There may be a hundred thousand, and this is the whole cost of a start: the garbage collector passes over texts.
    rows: list[str] = []
    others = 0
    with contextlib.ExitStack() as stack:
        try:
            newest = os.stat(folder).st_ctime_ns
            # From a descriptor, the files in the folder are found without the way to it, which is quicker.
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            entries = stack.enter_context(os.scandir(descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return ["no such folder"], 0
        for entry in entries:
            name = entry.name
            if name[name.rfind(".") :].lower() in suffixes:
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    rows.append(f"{name}\0leads nowhere")
                    continue
                changed = status.st_ctime_ns
                rows.append(f"{name}\0{status.st_size} {status.st_mtime_ns} {changed}")
                newest = changed if changed > newest else newest
            elif entry.is_dir():
                rows.append(f"{name}\0folder")
            else:
                others += 1
    return [*rows, f"{others} others"], newest
