"""Is the newest checkpoint of a run whole at its backup? What is missing is sent, and all of it looked at there."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

from yoloyard.common.errors import UserError
from yoloyard.common.files import write_soon
from yoloyard.storage.address import reasons_said
from yoloyard.storage.copies import CHECKPOINT, NOTE, Copies, TakenOverError, files_of, manifest_of, part_of, utc_text
from yoloyard.storage.fetch import read_note


def has_checkpoint(run: Path) -> bool:
    """Is there anything of the run that can be saved?"""
    return (run / CHECKPOINT / "manifest.json").exists()


def is_newer_there(run: Path, copies: Copies) -> bool:
    """Has another host gone on with the run of the folder `run`, and come further?"""
    if (copies.read_owner() or {}).get("writer") == read_note(run).get("writer") or not has_checkpoint(run):
        return False
    progress = json.loads((run / CHECKPOINT / "state.json").read_bytes())["progress"]
    here = progress["epoch"], progress["position"]
    return any((each.epoch, each.position) > here for each in copies.read_manifests()[-1:])


def send_newest(run: Path, address: str, endpoint: str | None, keep: int, moved: Callable[[int], None]) -> None:
    """Make the newest copy below `address` equal to the run folder `run`, whose training is over, and check it there.

    `moved(bytes)` hears of each part and may raise an error to end it. Raises TakenOverError if another host goes on
    with the run, UserError if it is not whole there.
    """
    note, copies = read_note(run), Copies(address, endpoint, create=True)
    with reasons_said(address):
        owner = copies.read_owner() or {}
        if owner.get("writer") != note.get("writer") and owner.get("host") not in (None, socket.gethostname()):
            raise TakenOverError(f"the copies there are those of {owner['host']} since {owner.get('since')}")
        manifest = manifest_of(run, run, files_of(run))
        newest = next(iter(copies.read_manifests()[::-1]), None)
        if newest is None or newest.files != manifest.files:
            note |= {"address": address, "run": note.get("run") or run.name, "writer": copies.writer, "error": ""}
            copies.claim(note["run"], run.name)
            copies.send(run, manifest, keep, moved)
            newest = copies.manifests[-1]
            note |= {"epoch": newest.epoch, "time": utc_text(), "waiting_since": None}
            write_soon(run / NOTE, json.dumps(note, indent=1).encode())
        for name, facts in newest.files.items():
            moved(0)
            there = copies.head(part_of(facts))
            if there is None or there["size"] != facts["size"]:
                raise UserError(f"{name} of the newest checkpoint is not whole in {address}")
