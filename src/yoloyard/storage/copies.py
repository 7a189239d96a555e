"""The copies of one run below an address of an object store.

    run.json                     whose copies these are, and which process writes them
    checkpoints/00000012.json    a manifest, written last: the files of the run folder, each with its size and SHA-256
    parts/SHA256                 the content of these files, each content once
    weights/best.safetensors ... the newest files of the run, but for its checkpoint, under their own names

A checkpoint counts if its manifest is there, and a manifest is written when all of its parts have been read back.
"""

import hashlib
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yoloyard.common.errors import UserError
from yoloyard.storage.address import open_store, reason

log = logging.getLogger(__name__)

PART_BYTES = 8 * 2**20  # of one request; larger files go in several
REQUESTS = 4  # at a time
CHECKPOINT = "checkpoints/last/"  # where the files of a checkpoint lie in a run folder
MAX_NUMBERS = 100  # tried for a manifest
NEWEST_KEPT = 2  # manifests, beside those of the checkpoints that the run keeps itself

Facts = dict[str, Any]  # of a file: size, sha256


class SupersededError(Exception):
    """There is something newer to send."""


class TakenOverError(UserError):
    """Another process goes on with the run, and its copies are made by that one."""


@dataclass(frozen=True)
class Manifest:
    """What a run folder held at one moment."""

    number: int
    epoch: int
    position: int
    kept: bool  # by `--save-period`
    writer: str  # the process that made it
    files: Mapping[str, Facts] = field(repr=False)  # by their paths in the run folder

    @property
    def parts(self) -> set[str]:
        """The objects that its files are in."""
        return {f"parts/{facts['sha256']}" for facts in self.files.values()}


class Copies:
    """The copies below `address`, written by this process once it has claimed them. Raises obstore's errors."""

    def __init__(self, address: str, endpoint: str | None = None, create: bool = False) -> None:
        import obstore

        self._obs, self.address = obstore, address
        self.store = open_store(address, endpoint, create)
        self.writer = secrets.token_hex(8)
        self.manifests: list[Manifest] = []  # by number
        self._parts: set[str] = set()  # that are there
        self._checked: set[str] = set()  # of these, those that were read back
        self._has_warned = False  # that old copies can't be removed

    def read(self) -> Facts | None:
        """What run.json says; None if there is none."""
        try:
            facts: Facts = json.loads(bytes(self._obs.get(self.store, "run.json").bytes()))
            return facts
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise
            return None

    def read_manifests(self) -> list[Manifest]:
        """All manifests, the oldest first; what can't be one is left out with a line."""
        found = []
        for path in sorted(self._list("checkpoints")):
            try:
                content = json.loads(bytes(self._obs.get(self.store, path).bytes()))
                found.append(Manifest(number=int(Path(path).stem), **content))
            except (ValueError, TypeError, FileNotFoundError) as error:  # another process may have removed it
                log.warning(f"{self.address}/{path} is left out: {error}")
        return found

    def claim(self, run: str, name: str) -> None:
        """Make this process the writer. Raises UserError if the address holds anything but copies of the run `run`."""
        facts = self.read()
        if facts is None and self._list(None):
            raise UserError(
                f"{self.address} holds other objects already, and copies would replace those with their names; name an "
                f"empty prefix: --backup {self.address}/{name}"
            )
        own = {"run": run, "name": name, "writer": self.writer, "host": socket.gethostname(), "since": utc_now()}
        if facts is None and not self._create("run.json", own):
            facts = self.read()
        if facts is not None and facts.get("run") != run:
            raise UserError(
                f"{self.address} holds the copies of another run, {facts.get('name')} on {facts.get('host')} since "
                f"{facts.get('since')}: name another address for this one, or go on with that one: yoloyard train "
                f"--resume {self.address}"
            )
        if facts is not None:  # the same run, going on here
            self._obs.put(self.store, "run.json", json.dumps(own).encode())
        self.manifests, self._parts = self.read_manifests(), set(self._list("parts"))
        self._checked = set[str]().union(*(each.parts for each in self.manifests))

    def send(
        self,
        folder: Path,
        files: Mapping[str, Facts],
        place: tuple[int, int],
        keeps: tuple[bool, int],
        arrived: Callable[[int], None],
    ) -> None:
        """Send the `files` of `folder`, the state of a run at (epoch, position) `place`, and read them back.

        `keeps`: whether the run keeps this checkpoint, and how many of those. `arrived(bytes)` is told of each file and
        may raise SupersededError. Sends nothing if the newest manifest has the same files. Raises TakenOverError.
        """
        newest = self.manifests[-1] if self.manifests else None
        if newest is not None and newest.files == files:
            return
        for name, facts in files.items():
            self._send_part(folder / name, facts)
            arrived(facts["size"])
        self._check_writer()
        for name, facts in files.items():
            if not name.startswith(CHECKPOINT) and (newest is None or newest.files.get(name) != facts):
                self._obs.copy(self.store, f"parts/{facts['sha256']}", name)
        first = newest.number + 1 if newest else 1
        content = {"epoch": place[0], "position": place[1], "kept": keeps[0], "writer": self.writer, "files": files}
        for number in range(first, first + MAX_NUMBERS):  # another process may have used some
            if self._create(f"checkpoints/{number:08d}.json", content):
                break
        else:
            raise UserError("manifests did not arrive as they were sent")
        self.manifests.append(Manifest(number=number, **content))  # type: ignore[arg-type]
        self._remove_old(keeps[1])

    def _send_part(self, path: Path, facts: Facts) -> None:
        part = f"parts/{facts['sha256']}"
        if part in self._checked:
            if (there := self.head(part)) is not None and there["size"] == facts["size"]:
                return
            self._parts -= {part}
        etag = etag_of(path, facts)
        if part not in self._parts or not self._holds(part, facts, etag):
            self._obs.put(self.store, part, path, chunk_size=PART_BYTES, max_concurrency=REQUESTS)
            self._parts.add(part)
            if not self._holds(part, facts, etag):
                raise UserError(f"{path.name} did not arrive as it was sent")
        self._checked.add(part)

    def _holds(self, part: str, facts: Facts, etag: str) -> bool:
        """Does the object `part` have the content that it should have?"""
        there = self.head(part)
        if there is None or there["size"] != facts["size"]:
            return False
        # An ETag that is the MD5 shows the content; stores with others, or that encrypt, give it back to be looked at.
        return (there["e_tag"] or "").strip('"') == etag or self.download(part, Path(os.devnull)) == facts["sha256"]

    def _check_writer(self) -> None:
        facts = self.read() or {}
        if facts.get("writer") != self.writer:
            raise TakenOverError(
                f"the run goes on elsewhere ({facts.get('host', 'its run.json is gone')}), and its copies in "
                f"{self.address} come from there; this process makes no more. Stop one of the two"
            )

    def _create(self, path: str, content: Mapping[str, Any]) -> bool:
        """Put an object that isn't there yet, and read it back; False if there is another one.

        A store that can't refuse to replace an object gets it unconditionally.
        """
        body = json.dumps(content).encode()
        errors = self._obs.exceptions
        try:
            self._obs.put(self.store, path, body, mode="create")
        except (errors.AlreadyExistsError, errors.PreconditionError):
            pass  # it may be this one: a request whose answer was lost is sent again
        except (errors.NotSupportedError, errors.GenericError) as error:
            if isinstance(error, errors.GenericError) and "NotImplemented" not in str(error):
                raise
            self._obs.put(self.store, path, body)
        return bytes(self._obs.get(self.store, path).bytes()) == body

    def _remove_old(self, keep: int) -> None:
        """Remove all but the newest manifests and the last `keep` that the run keeps, and what only those needed."""
        kept = [each for each in self.manifests if each.kept][-keep:]
        gone = [each for each in self.manifests[:-NEWEST_KEPT] if each not in kept]
        left = [each for each in self.manifests if each not in gone]
        parts = self._parts - set[str]().union(*(each.parts for each in left))
        paths = [*(f"checkpoints/{each.number:08d}.json" for each in gone), *parts]
        try:
            if paths:
                self._obs.delete(self.store, paths)
            self.manifests, self._parts, self._checked = left, self._parts - parts, self._checked - parts
        except FileNotFoundError:  # somebody has removed some of them
            self.manifests, self._parts = self.read_manifests(), set(self._list("parts"))
        except self._obs.exceptions.BaseError as error:  # tried again with the next checkpoint
            if not self._has_warned:
                log.warning(f"old copies stay in {self.address}: {reason(error)}")
            self._has_warned = True

    def download(self, path: str, target: Path) -> str:
        """Write the object `path` into the file `target`; returns its SHA-256."""
        digest = hashlib.sha256()
        with target.open("wb") as file:
            for chunk in self._obs.get(self.store, path).stream(min_chunk_size=PART_BYTES):
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()

    def head(self, path: str) -> Mapping[str, Any] | None:
        """Size, ETag and more of the object `path`; None if there is none."""
        try:
            return self._obs.head(self.store, path)
        except FileNotFoundError:
            return None

    def _list(self, prefix: str | None) -> list[str]:
        return [each["path"] for chunk in self._obs.list(self.store, prefix) for each in chunk]


def facts_of(path: Path) -> Facts:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def etag_of(path: Path, facts: Facts) -> str:
    """The ETag that S3 gives a file sent in parts of PART_BYTES (MD5 of MD5s). Raises UserError if the file changed."""
    sha256, parts = hashlib.sha256(), []
    with path.open("rb") as file:
        while chunk := file.read(PART_BYTES):
            sha256.update(chunk)
            parts.append(hashlib.md5(chunk, usedforsecurity=False).digest())
    if sha256.hexdigest() != facts["sha256"]:
        raise UserError(f"{path.name} has changed on the disk since it was written; the next checkpoint is sent")
    if len(parts) == 1:
        return parts[0].hex()
    whole = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return f"{whole}-{len(parts)}" if parts else whole


def utc_now() -> str:
    """The time as texts have it, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
