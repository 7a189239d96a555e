"""Data from a prefix of an object store into a folder of this host: only what is missing, checked when it has come.

`.fetched` in the folder names each file that came, with size and ETag, so that a fetch that was cut off goes on.
"""

import json
import logging
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath

from yoloyard.common.errors import UserError
from yoloyard.common.log import bytes_text
from yoloyard.storage.address import reasons_said
from yoloyard.storage.copies import Copies, facts_of

log = logging.getLogger(__name__)

NOTE = ".fetched"
REQUESTS = 16  # at a time: most files are small


def fetch_data(address: str, endpoint: str | None, folder: Path, look: Callable[[int], None]) -> None:
    """Make `folder` hold what lies below `address`; what an earlier fetch has brought and is gone there is removed.

    `look(bytes)` hears several times a second how much has come, and may raise an error to end it. Raises UserError.
    """
    copies = Copies(address, endpoint)
    with reasons_said(address):
        found = {each["path"]: (each["size"], each["e_tag"]) for each in copies.objects()}
    folders = {str(parent) for name in found for parent in PurePosixPath(name).parents}
    found = {name: facts for name, facts in found.items() if name not in folders}  # an object that marks a folder
    if not found:
        raise UserError(f"nothing lies below {address}: correct `data`, or copy the data there")
    if wrong := [name for name in found if name.startswith("/") or ".." in PurePosixPath(name).parts or name == NOTE]:
        raise UserError(f"{address}/{wrong[0]} can't be a file below {folder}: rename it there")
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / NOTE
    lines = [json.loads(line) for line in note.read_text().splitlines() if line.endswith("]")] if note.exists() else []
    came = {name: (size, tag) for name, size, tag in lines}
    for name in came.keys() - found.keys():
        (folder / name).unlink(missing_ok=True)
    sizes = {name: (folder / name).stat().st_size for name in found if (folder / name).is_file()}
    missing = [name for name, facts in found.items() if came.get(name) != facts or sizes.get(name) != facts[0]]
    total, done, lock = sum(found[name][0] for name in missing), 0, threading.Lock()
    log.info(f"data: {len(missing)} of {len(found)} files ({bytes_text(total)}) are fetched from {address}")

    def fetch(name: str) -> int:
        size, tag = found[name]
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        with reasons_said(f"{address}/{name}"):
            first = copies.download(name, part)
            if not _is_whole(part, size, tag):  # an ETag need not be a digest: two equal answers will do
                is_same = copies.download(name, part) == first and part.stat().st_size == size
                if not (is_same or _is_whole(part, size, tag)):
                    raise UserError(f"{address}/{name} does not arrive as it is there")
            part.replace(target)
            with lock, note.open("a") as file:
                file.write(json.dumps([name, size, tag]) + "\n")
        return size

    with ThreadPoolExecutor(REQUESTS) as threads:
        waiting = {threads.submit(fetch, name) for name in missing}
        try:
            while waiting:
                over, waiting = wait(waiting, 0.5)
                done += sum(each.result() for each in over)
                look(done)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    log.info("data: all files are here")


def _is_whole(path: Path, size: int, tag: str | None) -> bool:
    """Has the file this size, and the content of which the ETag, where it is a digest, speaks?"""
    facts = facts_of(path)
    digest = (tag or "").strip('"')
    return facts["size"] == size and (not re.fullmatch(r"[0-9a-f]{32}(-\d+)?", digest) or facts["etag"] == digest)
