"""The copies of one run below an address of an object store.

    run.json                     whose copies these are, and which process writes them
    checkpoints/00000012.json    a manifest, written last: the files of the run folder, each with its size and SHA-256
    parts/SHA256                 the content of these files, each content once
    weights/best.safetensors ... the newest files of the run, but for its checkpoint, under their own names

A checkpoint counts if its manifest is there, and a manifest is written when all of its parts have been read back.
"""

import hashlib
import itertools
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yoloyard.common.errors import UserError
from yoloyard.common.log import ONCE
from yoloyard.storage.address import open_store, reason

log = logging.getLogger(__name__)

PART_BYTES = 8 * 2**20  # of one request; larger files go in several
REQUESTS = 4  # at a time
CHECKPOINT = "checkpoints/last/"  # where the files of a checkpoint lie in a run folder
NOTE = "backup.json"  # in a run folder: where its copies are, and how far they have come
NEWEST_KEPT = 2  # moments of a run, beside the checkpoints that the run keeps itself

Facts = dict[str, Any]  # of a file: size, sha256, and etag, which is what S3 makes of a file sent in PART_BYTES


class TakenOverError(UserError):
    """Another process goes on with the run, and its copies are made by that one."""


@dataclass(frozen=True)
class Manifest:
    """What a run folder held at one moment."""

    epoch: int
    position: int
    kept: bool  # by `--save-period`
    files: Mapping[str, Facts] = field(repr=False)  # by their paths in the run folder
    writer: str = ""  # the process that made it
    number: int = 0

    @property
    def objects(self) -> set[str]:
        """The manifest itself, and what its files are in."""
        return {f"checkpoints/{self.number:08d}.json"} | {part_of(facts) for facts in self.files.values()}


def files_of(run: Path) -> list[Path]:
    """What is copied of a run folder with a checkpoint: while the loss rises, its last good checkpoint, too."""
    monitor = json.loads((run / CHECKPOINT / "state.json").read_bytes()).get("monitor", {})
    is_rising = monitor.get("history", {}).get("rising_since") is not None
    patterns = f"{CHECKPOINT}*", *["checkpoints/previous/*"] * is_rising, "weights/*", "*"
    found = itertools.chain.from_iterable(map(run.glob, patterns))
    return [path for path in found if path.is_file() and not path.name.startswith(".") and path.name != NOTE]


def manifest_of(run: Path, folder: Path, paths: Iterable[Path]) -> Manifest:
    """The manifest of files in `folder`, of the run folder `run`. Raises UserError if its checkpoint has changed."""
    files = {path.relative_to(folder).as_posix(): facts_of(path) for path in sorted(paths)}
    written = json.loads((folder / CHECKPOINT / "manifest.json").read_bytes())["files"]
    for name in written:
        if files.get(CHECKPOINT + name, {}).get("sha256") != written[name]["sha256"]:
            raise UserError(f"{name} has changed on the disk since it was written; the next checkpoint is sent")
    progress = json.loads((folder / CHECKPOINT / "state.json").read_bytes())["progress"]
    epoch, position = progress["epoch"], progress["position"]
    return Manifest(epoch, position, position == 0 and (run / "checkpoints" / f"epoch-{epoch:04d}").exists(), files)


class Copies:
    """The copies below `address`, written by this process once it has claimed them. Raises obstore's errors."""

    def __init__(self, address: str, endpoint: str | None = None, create: bool = False) -> None:
        self.store, self.address = open_store(address, endpoint, create), address
        import obstore  # which `open_store` misses in a line

        self._obs = obstore
        self.writer = secrets.token_hex(8)
        self.manifests: list[Manifest] = []  # by number
        self._checked: set[str] = set()  # objects that have been read back

    def claim(self, run: str, name: str) -> None:
        """Make this process the writer. Raises UserError if the address holds anything but copies of the run `run`."""
        owner = self.read_owner()
        if owner is None and next(iter(self._obs.list(self.store, chunk_size=1)), None):
            raise UserError(
                f"{self.address} holds other objects already, and copies would replace those with their names; name an "
                f"empty prefix: --backup {self.address}/{name}"
            )
        own = {"run": run, "name": name, "writer": self.writer, "host": socket.gethostname(), "since": utc_text()}
        if owner is None and not self._create("run.json", own):
            owner = self.read_owner()
        self.manifests = self.read_manifests()
        if owner is not None and owner.get("run") != run:
            go_on = f"go on with that one: yoloyard train --resume {self.address}"
            nothing = f"remove {self.address}/run.json if that one is over: no checkpoint of it has arrived"
            raise UserError(
                f"{self.address} holds the copies of another run, {owner.get('name')} on {owner.get('host')} since "
                f"{owner.get('since')}: name another address for this one, or {go_on if self.manifests else nothing}"
            )
        if owner is not None:  # the same run, going on here
            self._obs.put(self.store, "run.json", json.dumps(own).encode())
        self._checked = set[str]().union(*(each.objects for each in self.manifests))

    def send(self, folder: Path, manifest: Manifest, keep: int, moved: Callable[[int], None]) -> None:
        """Send the files that `manifest` lists from `folder`, and read them back; `keep` as in `--keep`.

        `moved(bytes)` hears of each part, also of those that are there already, and may raise an error to end it.
        Sends nothing if the newest copy has the same files. Raises TakenOverError, or UserError if something does not
        arrive as it was sent.
        """
        newest = self.manifests[-1] if self.manifests else None
        if newest is not None and newest.files == manifest.files:
            return
        for name, facts in manifest.files.items():
            self._send_file(folder / name, facts, moved)
        self._check_writer()
        for name, facts in manifest.files.items():
            if not name.startswith("checkpoints/") and (newest is None or newest.files.get(name) != facts):
                self._obs.copy(self.store, part_of(facts), name)
        numbers = [int(Path(path).stem) for path in self._list("checkpoints") if Path(path).stem.isdecimal()]
        content = asdict(manifest) | {"writer": self.writer, "number": max(numbers, default=0) + 1}
        if not self._create(f"checkpoints/{content['number']:08d}.json", content):
            self.manifests = self.read_manifests()
            raise UserError(f"{self.address} has a checkpoint {content['number']} meanwhile")
        self.manifests.append(Manifest(**content))
        self._remove_old(keep)

    def _send_file(self, path: Path, facts: Facts, moved: Callable[[int], None]) -> None:
        def chunks() -> Iterator[bytes]:
            with path.open("rb") as file:
                while chunk := file.read(PART_BYTES):
                    moved(len(chunk))
                    yield chunk

        part = part_of(facts)
        if self._holds(part, facts):
            moved(facts["size"])
        else:
            content = chunks() if facts["size"] > PART_BYTES else b"".join(chunks())
            self._obs.put(self.store, part, content, chunk_size=PART_BYTES, max_concurrency=REQUESTS)
            if not self._holds(part, facts):
                raise UserError(f"{path.name} did not arrive as it was sent")
        self._checked.add(part)

    def _holds(self, part: str, facts: Facts) -> bool:
        """Does the object `part` have the content that it should have?"""
        there = self.head(part)
        if there is None or there["size"] != facts["size"]:
            self._checked.discard(part)
            return False
        # An ETag that is the MD5 shows the content; stores with others, or that encrypt, give it back to be looked at.
        is_same = part in self._checked or (there["e_tag"] or "").strip('"') == facts["etag"]
        return is_same or self.download(part, Path(os.devnull)) == facts["sha256"]

    def _check_writer(self) -> None:
        owner = self.read_owner() or {}
        if owner.get("writer") != self.writer:
            raise TakenOverError(
                f"the run goes on elsewhere ({owner.get('host', 'its run.json is gone')}), and its copies in "
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
        except errors.BaseError as error:
            if "NotImplemented" not in str(error):
                raise
            self._obs.put(self.store, path, body)
        return self.read(path) == body

    def _remove_old(self, keep: int) -> None:
        """Remove all but the newest moments and the last `keep` that the run keeps itself."""
        self._check_writer()
        places = [(each.epoch, each.position) for each in self.manifests]  # of a moment, its last manifest counts
        last = [each for number, each in enumerate(self.manifests) if places[number] not in places[number + 1 :]]
        kept = [each for each in last if each.kept][-keep:]
        self.manifests = [each for each in last if each in kept or each in last[-NEWEST_KEPT:]]
        needed = set[str]().union(*(each.objects for each in self.manifests))
        self._checked &= needed
        try:
            old = [path for path in self._list("checkpoints") + self._list("parts") if path not in needed]
            if old:
                self._obs.delete(self.store, old)
        except (self._obs.exceptions.BaseError, OSError) as error:  # tried again with the next checkpoint
            log.warning(f"old copies stay in {self.address}: {reason(error)}", extra=ONCE)

    def read_owner(self) -> Facts | None:
        """What run.json says; None if there is none."""
        owner: Facts | None = json.loads(self.read("run.json") or b"null")
        return owner

    def remove_owner(self) -> None:
        """Free the address of a run that has ended before its first checkpoint."""
        self._obs.delete(self.store, "run.json")

    def read_manifests(self) -> list[Manifest]:
        """All manifests, the oldest first; what can't be one is left out with a line."""
        found = []
        for path in sorted(self._list("checkpoints")):
            try:
                found.append(Manifest(**json.loads(self.read(path) or b"")))
            except (ValueError, TypeError) as error:
                log.warning(f"{self.address}/{path} is left out: {error}")
        return found

    def read(self, path: str) -> bytes | None:
        """The content of the small object `path`; None if there is none."""
        try:
            return bytes(self._obs.get(self.store, path).bytes())
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise
            return None

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

    def objects(self) -> Iterator[Mapping[str, Any]]:
        """Path, size and ETag of all that lies below the address."""
        return (each for chunk in self._obs.list(self.store) for each in chunk)

    def _list(self, prefix: str) -> list[str]:
        return [each["path"] for chunk in self._obs.list(self.store, prefix) for each in chunk]


def part_of(facts: Facts) -> str:
    """The object that holds the content of a file."""
    return f"parts/{facts['sha256']}"


def facts_of(path: Path) -> Facts:
    """Size in bytes, SHA-256 and ETag of a file. The ETag is its MD5, or that of the MD5s of several parts."""
    sha256, size, parts = hashlib.sha256(), 0, list[bytes]()
    with path.open("rb") as file:
        while chunk := file.read(PART_BYTES):
            sha256.update(chunk)
            size += len(chunk)
            parts.append(hashlib.md5(chunk, usedforsecurity=False).digest())
    md5 = parts[0].hex() if len(parts) == 1 else hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return {"size": size, "sha256": sha256.hexdigest(), "etag": f"{md5}-{len(parts)}" if len(parts) > 1 else md5}


def utc_text(seconds: float | None = None) -> str:
    """The time, or that of so many seconds since 1970, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
