"""Published weights files (config/known_weights.toml) in the cache: fetched when the user asks for one, and checked."""

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from yoloyard.common.digests import file_sha256
from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.files import write_whole, write_whole_text
from yoloyard.config.known_weights import KnownFile, find_known
from yoloyard.data.store import alone, cache_folder
from yoloyard.storage.download import FetchError, Show, download, forget

log = logging.getLogger(__name__)

GITHUB = "https://github.com"
MIRROR = "YOLOYARD_MIRROR"  # the variable with the address to take in its place
TORCH_MAGICS = (b"PK\x03\x04", b"\x80\x02")  # how files of torch.save begin, in its two formats


def place_of(known: KnownFile) -> Path:
    """Where the cache has a published file, or would have it."""
    return cache_folder("published") / known.file


def source_of(known: KnownFile) -> str:
    """The address that it is fetched from. Raises UsageError if YOLOYARD_MIRROR is no address."""
    mirror = os.environ.get(MIRROR, "").rstrip("/") or GITHUB
    if not re.fullmatch(r"https?://[^\s@?#]+", mirror):
        raise UsageError(
            f"{MIRROR} can't be used: it must be an address such as https://mirror.example.cn, without user, password "
            f"and parameters; it takes the place of {GITHUB}"
        )
    return known.address.replace(GITHUB, mirror, 1)


def meant(weights: str) -> KnownFile | None:
    """The published file that `--weights` means: no file is at this path, and it is the name of one or of its model."""
    known = find_known(weights)
    return None if known is None or Path(weights).is_file() else known


def fetched(weights: str) -> Path | None:
    """The published file in the cache that `--weights` means; a line says so. None if that is something else.

    Raises UserError if it is not the file that it was.
    """
    if (known := meant(weights)) is None or not (path := place_of(known)).is_file():
        return None
    _check(path, known)
    log.info(f"{weights}: using {path}, published by {known.publisher} under {known.licence}")
    return path


def get(known: KnownFile, show: Show = lambda done, total: None) -> Path:
    """The published file in the cache, fetched if it isn't there, whole and checked or not at all.

    Its SHA-256 must be that of known_weights.toml or, where that has none, the one that the first download noted beside
    the file. Raises UsageError or UserError, saying where to put the file where there is no network.
    """
    path, source = place_of(known), source_of(known)
    part = path.with_name(f".{known.file}.part")
    with alone(path, f"another process fetches {known.file}: waiting for it") as is_alone:
        if not is_alone:
            raise UserError(f"{path.parent} can't be written or has no locks: name another folder by YOLOYARD_CACHE")
        if path.is_file():
            _keep_note(path, known, _check(path, known))
            return path
        try:
            download(source, part, show)
        except FetchError as error:
            raise UserError(f"{error}. {_other_ways(known)}") from error
        try:
            sha256 = _check(part, known, source)
        except UserError:
            forget(part)
            raise
        write_whole(path, part.replace)
        forget(part)
        _keep_note(path, known, sha256)
    return path


def _other_ways(known: KnownFile) -> str:
    return (
        f"{MIRROR} names a mirror of {GITHUB}. Without a network, bring {known.address} here by other means and put it "
        f"at {place_of(known)}"
    )


def _check(path: Path, known: KnownFile, source: str = "") -> str:
    """The SHA-256 of a file. Raises UserError if it is not the published one, with what to do about it.

    `source`: where it has just come from; else it is in the cache.
    """
    with path.open("rb") as file:
        start = file.read(40)
    what = f"{source}: what came, and was removed," if source else str(path)
    again = f"; remove it, and `yoloyard weights get {known.model}` fetches it again"
    again = f". {_other_ways(known)}" if source else again
    if not start.startswith(TORCH_MAGICS):
        raise UserError(f"{what} is no weights file: it begins with {start!r}{again}")
    size = path.stat().st_size
    if known.bytes and size != known.bytes:
        raise UserError(f"{what} has {size:,} bytes, and the published file {known.bytes:,}{again}")
    sha256, note = file_sha256(path), _note(known)
    expected = known.sha256 or _read_note(known).get("sha256")
    if expected and sha256 != expected:
        where = "its publisher states" if known.sha256 else f"{note} has from the first download"
        new = "" if known.sha256 else f". If its publisher has replaced the file and you trust it, remove {note}"
        raise UserError(f"{what} has SHA-256 {sha256}, not the {expected} that {where}{again}{new}")
    return sha256


def _keep_note(path: Path, known: KnownFile, sha256: str) -> None:
    """Note the SHA-256 of a file that is in the cache for the first time."""
    if not _read_note(known):
        facts = {"sha256": sha256, "bytes": path.stat().st_size, "address": known.address, "terms": known.terms}
        write_whole_text(_note(known), json.dumps(facts, indent=1))


def _note(known: KnownFile) -> Path:
    return place_of(known).with_name(f"{known.file}.json")


def _read_note(known: KnownFile) -> dict[str, Any]:
    try:
        note: dict[str, Any] = json.loads(_note(known).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{_note(known)} is damaged: remove it") from error
    return note
