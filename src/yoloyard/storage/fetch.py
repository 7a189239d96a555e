"""From an object store to this host: the run whose copies an address holds, or a weights file."""

import itertools
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from yoloyard.common.errors import UserError
from yoloyard.common.files import RUN_MARK, write_whole, write_whole_folder, write_whole_text
from yoloyard.data.store import Store, alone
from yoloyard.storage.address import reason
from yoloyard.storage.copies import Copies, Manifest

log = logging.getLogger(__name__)

NOTE = "backup.json"  # in a run folder: where its copies are, and how far they have come
ATTEMPTS = 4  # at a file, with 1, 2 and 4 seconds between them
WEIGHTS_KEPT = 10  # files in the cache of those that came from addresses
BEST = "weights/best.safetensors"

Value = TypeVar("Value")


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
    facts = _attempts(address, copies.read)
    if facts is None:
        raise UserError(f"{address} holds no copies of a run: there is no run.json; see whether the prefix is right")
    name = str(facts.get("name"))
    if PurePosixPath(name).name != name or name in ("", ".."):
        raise UserError(f"{address}/run.json is damaged: the run's name is {name!r}")
    manifests = _attempts(address, copies.read_manifests)[::-1]
    if not manifests:
        raise UserError(f"{address} holds no whole checkpoint: none had arrived when the run {name} ended")
    with alone(project / f".{name}"):
        for number in itertools.count(1):
            folder = project / (f"{name}-{number}" if number > 1 else name)
            if not folder.exists():
                break
            note = read_note(folder)
            is_newest = manifests[0].writer == note.get("writer") or manifests[0].number == note.get("fetched")
            if note.get("run") == facts["run"] and is_newest:
                log.info(f"{folder} is as new as {address}: going on from there")
                return folder
        for manifest in manifests:
            try:
                write_whole_folder(folder, lambda temporary: _fill(temporary, copies, manifest))  # noqa: B023
            except UserError as error:
                if error.__cause__ is not None and not isinstance(error.__cause__, FileNotFoundError):
                    raise  # the disk is full, the server is down: the checkpoint is not to blame
                log.warning(f"{address}: checkpoint {manifest.number} can't be used: {error}; trying the one before")
                continue
            note = {"address": address, "run": facts["run"], "fetched": manifest.number}
            write_whole_text(folder / NOTE, json.dumps(note, indent=1))
            size = sum(each["size"] for each in manifest.files.values())
            log.info(f"fetched {size / 1e6:.1f} MB from {address} into {folder}")
            return folder
    raise UserError(f"{address} holds no whole checkpoint: each of its {len(manifests)} is damaged, as said above")


def local_weights(weights: str) -> Path:
    """The file in the cache for the address of a weights file, or of a run, which stands for its best weights.

    It is fetched once for each content, by its ETag. Raises UsageError or UserError.
    """
    address = weights.rstrip("/")
    for parent, _, path in (address.rpartition("/"), (address, "", BEST)):
        if parent.endswith("/"):  # s3://bucket has no file of that name
            continue
        copies = Copies(parent)
        if (found := _attempts(weights, lambda: copies.head(path))) is not None:  # noqa: B023
            break
    else:
        raise UserError(f"there is no weights file {weights}, nor {BEST} in a run of that address")
    cache = Store("weights", Path(path).suffix, 1, WEIGHTS_KEPT)
    place = cache.path([weights, found["e_tag"], found["size"]])
    if cache.find(place, Path.stat) is None:
        log.info(f"fetching {weights} ({found['size'] / 1e6:.1f} MB)")
        cache.make_room(place, is_alone=False)
        write_whole(place, lambda temporary: _attempts(weights, lambda: copies.download(path, temporary)))
    return place


def _fill(folder: Path, copies: Copies, manifest: Manifest) -> None:
    """Download all files of a manifest. Raises UserError if one is missing or not what it should be."""
    for name, facts in manifest.files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"it names a file outside the run folder, {name!r}")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        part = f"parts/{facts['sha256']}"
        if _attempts(part, lambda: copies.download(part, target)) != facts["sha256"]:  # noqa: B023
            raise UserError(f"{name} has another content than was sent")
    (folder / RUN_MARK).touch()


def _attempts(what: str, work: Callable[[], Value]) -> Value:
    """What `work` gives, after some attempts. Raises UserError, naming `what`."""
    import obstore.exceptions as errors

    for attempt in range(ATTEMPTS):
        try:
            return work()
        except FileNotFoundError as error:
            raise UserError(f"{what} is not there: {reason(error)}") from error
        except errors.BaseError as error:
            is_final = isinstance(error, errors.PermissionDeniedError | errors.UnauthenticatedError)
            if is_final or attempt == ATTEMPTS - 1:
                raise UserError(f"{what}: {reason(error)}") from error
        time.sleep(2**attempt)
    raise AssertionError("unreachable")
