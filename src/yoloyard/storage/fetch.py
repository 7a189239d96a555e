"""From an object store to this host: the run whose copies an address holds, its records, or a weights file."""

import itertools
import json
import logging
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from yoloyard.common.errors import UserError
from yoloyard.common.files import EXPORTED_FILES, RUN_MARK, write_whole, write_whole_folder
from yoloyard.common.log import bytes_text
from yoloyard.data.store import Store, alone
from yoloyard.storage.address import is_address, reasons_said
from yoloyard.storage.copies import NOTE, Copies, Manifest, part_of
from yoloyard.storage.published import fetched, meant

log = logging.getLogger(__name__)

WEIGHTS_KEPT = 10  # files in the cache of those that came from addresses
BEST = "weights/best.safetensors"
WEIGHTS = (".safetensors", ".pt", ".pth", *EXPORTED_FILES)  # files of networks; any other address is that of a run


class DamagedCopyError(Exception):
    """A file of a checkpoint is missing at the store, or not what was sent."""


def read_note(folder: Path) -> dict[str, Any]:
    """What NOTE says in the run folder; empty without one."""
    try:
        note: dict[str, Any] = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        return note
    except (OSError, ValueError):
        return {}


def fetch_run(address: str, endpoint: str | None, project: Path) -> Path:
    """Bring the newest whole checkpoint below `address`, and all of its run, into `project`; returns the run folder.

    The folder has the run's name, or with -2, -3 ... if something else is there already. One that is there and as new
    is left as it is. Raises UsageError or UserError if there is no run or none of its checkpoints is whole.
    """
    copies = Copies(address, endpoint)
    with reasons_said(address):
        owner, manifests = copies.read_owner(), copies.read_manifests()[::-1]
        name = str((owner or {}).get("name"))
        if PurePosixPath(name).name != name or name in ("", ".."):
            raise UserError(f"{address}/run.json is damaged: the run's name is {name!r}")
        if owner is None or not manifests:
            why = "no checkpoint had arrived when it ended" if owner else "see whether the prefix is right"
            raise UserError(f"{address} holds no whole checkpoint of a run: {why}")
        with alone(project / f".{name}"):
            for number in itertools.count(1):
                folder = project / (f"{name}-{number}" if number > 1 else name)
                if not folder.exists():
                    break
                note = read_note(folder)
                is_newest = manifests[0].writer == note.get("writer") or manifests[0].number == note.get("fetched")
                if note.get("run") == owner["run"] and is_newest:
                    log.info(f"{folder} is as new as {address}: going on from there")
                    return folder
            for manifest in manifests:
                note = {"address": address, "run": owner["run"], "fetched": manifest.number, "epoch": manifest.epoch}
                try:
                    write_whole_folder(folder, partial(_fill, copies, manifest, note))
                except DamagedCopyError as error:
                    log.warning(f"{address}: checkpoint {manifest.number} is damaged: {error}; trying the one before")
                    continue
                size = sum(each["size"] for each in manifest.files.values())
                log.info(f"fetched {bytes_text(size)} from {address} into {folder}")
                return folder
    raise UserError(f"{address} holds no whole checkpoint: each of its {len(manifests)} is damaged, as said above")


def local_weights(weights: str) -> Path:
    """The file at a path, or in the cache for an address: of a weights file, or of a run, whose best weights it means.

    It is fetched once for each content, by its ETag. Where no file is at the path, the name of a published file, or of
    its model, means the one that `yoloyard weights get` has fetched. Raises UsageError or UserError.
    """
    if not is_address(weights):
        return fetched(weights) or Path(weights)
    if weights.lower().endswith(".xml"):
        raise UserError(f"{weights} needs its .bin beside it: fetch both, or use an .onnx file")
    is_file = weights.lower().endswith(WEIGHTS)
    parent, _, path = weights.rpartition("/") if is_file else (weights.rstrip("/"), "", BEST)
    copies = Copies(parent)
    with reasons_said(weights):
        if (found := copies.head(path)) is None:
            raise UserError(f"there is no {path} in {parent}")
        cache = Store("weights", Path(path).suffix, 1, WEIGHTS_KEPT)
        place = cache.path([weights, found["e_tag"], found["size"]])
        if cache.find(place, Path.stat) is None:
            log.info(f"fetching {weights} ({bytes_text(found['size'])})")
            cache.make_room(place, is_alone=False)
            write_whole(place, partial(copies.download, path))
    return place


def weights_name(weights: str) -> str:
    """The name of the file that `local_weights` finds, which a copy in the cache may not have."""
    if (known := meant(weights)) is not None:
        return known.file
    is_run = is_address(weights) and not weights.lower().endswith(WEIGHTS)
    return PurePosixPath(BEST if is_run else weights).name


def _fill(copies: Copies, manifest: Manifest, note: dict[str, Any], folder: Path) -> None:
    """Download all files of a manifest, and write `note`. Raises DamagedCopyError."""
    for name, facts in manifest.files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise DamagedCopyError(f"it names a file outside the run folder, {name!r}")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            sha256 = copies.download(part_of(facts), target)
        except FileNotFoundError as error:
            raise DamagedCopyError(f"{name} is missing") from error
        if sha256 != facts["sha256"]:
            raise DamagedCopyError(f"{name} has another content than was sent")
    (folder / NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
    (folder / RUN_MARK).touch()
