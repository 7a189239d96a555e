"""Is the newest checkpoint of a run whole at its backup? What is missing is sent, and all of it looked at there."""

import json
from collections.abc import Callable
from pathlib import Path

from yoloyard.common.errors import UserError
from yoloyard.common.files import write_soon
from yoloyard.storage.address import reasons_said
from yoloyard.storage.copies import CHECKPOINT, Copies, Manifest, facts_of, part_of, utc_text
from yoloyard.storage.fetch import NOTE, read_note


def has_checkpoint(run: Path) -> bool:
    """Is there anything of the run that can be saved?"""
    return (run / CHECKPOINT / "manifest.json").exists()


def send_newest(run: Path, address: str, endpoint: str | None, keep: int, moved: Callable[[int], None]) -> None:
    """Make the newest copy below `address` equal to the run folder `run`, whose training is over, and check it there.

    `moved(bytes)` hears of each part and may raise an error to end it. Raises UserError if it is not whole there.
    """
    state = json.loads((run / CHECKPOINT / "state.json").read_bytes())
    is_rising = state.get("monitor", {}).get("history", {}).get("rising_since") is not None
    patterns = f"{CHECKPOINT}*", *["checkpoints/previous/*"] * is_rising, "weights/*", "*"  # as training does
    paths = [path for pattern in patterns for path in run.glob(pattern)]
    names = [path for path in paths if path.is_file() and not path.name.startswith(".") and path.name != NOTE]
    files = {path.relative_to(run).as_posix(): facts_of(path) for path in sorted(names)}
    written = json.loads((run / CHECKPOINT / "manifest.json").read_bytes())["files"]
    for name in written:
        if files.get(CHECKPOINT + name, {}).get("sha256") != written[name]["sha256"]:
            raise UserError(f"{run / CHECKPOINT / name} has changed since it was written, or is gone")
    epoch, position = state["progress"]["epoch"], state["progress"]["position"]
    is_kept = position == 0 and (run / "checkpoints" / f"epoch-{epoch:04d}").exists()
    note = read_note(run)
    copies = Copies(address, endpoint, create=True)
    with reasons_said(address):
        newest = next(iter(copies.read_manifests()[::-1]), None)
        if newest is None or newest.files != files:
            copies.claim(note.get("run") or run.name, run.name)
            copies.send(run, Manifest(epoch, position, is_kept, files), keep, moved)
            newest = copies.manifests[-1]
            note |= {"address": address, "run": note.get("run") or run.name, "writer": copies.writer, "error": ""}
            note |= {"epoch": newest.epoch, "time": utc_text(), "waiting_since": None}
            write_soon(run / NOTE, json.dumps(note, indent=1).encode())
        for name, facts in newest.files.items():
            moved(0)
            there = copies.head(part_of(facts))
            if there is None or there["size"] != facts["size"]:
                raise UserError(f"{name} of the newest checkpoint is not whole in {address}")
