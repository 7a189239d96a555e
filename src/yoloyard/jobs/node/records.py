"""The records of a job below BACKUP/job, which outlive its hosts: what was launched, its state, its log, its ledger.

A thread brings them there, so that nobody waits for a store that doesn't answer, and looks for BACKUP/job/stop.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yoloyard.common.errors import UserError
from yoloyard.common.log import ONCE
from yoloyard.common.run_folder import read_object
from yoloyard.jobs.launched import FILE, Launch
from yoloyard.storage.address import open_store, reasons_said

log = logging.getLogger(__name__)

PLACE = "job"  # below BACKUP
STATE, LOG, STOP = "keeper.json", "log.txt", "stop"
SECONDS_BETWEEN, LAST_SECONDS_BETWEEN = 30.0, 2.0
LOG_BYTES = 2_000_000  # of the end of the log


class Records:
    """Those of the job in `folder`; nothing where it has no backup. Raises UsageError or UserError."""

    def __init__(self, folder: Path, launch: Launch) -> None:
        self._folder, self._sent = folder, dict[str, bytes]()
        self._wanted: Callable[[], Mapping[str, bytes]] = dict
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._end = threading.Event()  # the records are the last ones
        self._has_arrived = False  # the last ones
        self._asked: str | None = None
        self._name, self._address = launch.name, f"{launch.backup}/{PLACE}"
        self._store: Any = None  # obstore's
        if launch.backup:
            self._store = open_store(launch.backup, launch.train.get("backup_endpoint"), create=True)
            import obstore

            self._obs = obstore

    def former(self) -> tuple[dict[str, Any], list[bytes]]:
        """The newest state of the job, here or at its backup, empty before its first; the attempts that are there.

        Where the backup can't be reached, what is here counts. Raises UserError if nothing is, or if the records there
        are of another job.
        """
        here = read_object(self._folder / STATE)
        try:
            other = _object(self._get(FILE)).get("name", self._name)
            there, attempts = _object(self._get(STATE)), self._attempts()
        except UserError as error:
            if not here:
                raise
            log.warning(f"{error}; what is known here counts", extra=ONCE)
            return here, []
        if other != self._name:
            raise UserError(f"{self._address} has the records of the job {other}: give each job a `backup:` of its own")
        return max(here, there, key=lambda each: str(each.get("updated") or "")), attempts

    def there(self) -> dict[str, Any]:
        """The state that the backup has; empty without one, or while it can't be reached."""
        try:
            return _object(self._get(STATE))
        except UserError as error:
            log.warning(f"{error}; it is tried again", extra=ONCE)
            return {}

    def _attempts(self) -> list[bytes]:
        if self._store is None:
            return []
        with reasons_said(self._address):
            found = [each["path"] for chunk in self._obs.list(self._store, f"{PLACE}/ledger") for each in chunk]
            return [bytes(self._obs.get(self._store, path).bytes()) for path in found]

    def start(self, wanted: Callable[[], Mapping[str, bytes]]) -> None:
        """Begin to bring there what `wanted` gives, by names, the launch and the log."""
        self._wanted = wanted
        if self._store is not None:
            self._thread.start()

    def stop_asked(self) -> str | None:
        """Why the job shall save and end, by the file `stop` here or below BACKUP/job; None: it shall not."""
        path = self._folder / STOP
        return _reason(path.read_bytes()) if path.exists() else self._asked

    def finish(self, seconds: float) -> bool:
        """Bring all there for the last time, and remove `stop`; did it arrive within `seconds`?"""
        (self._folder / STOP).unlink(missing_ok=True)
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return self._store is None or self._has_arrived

    def _work(self) -> None:
        while True:
            is_last = self._end.is_set()
            try:
                with reasons_said(self._address):
                    for name, content in self._contents().items():
                        if self._sent.get(name) != content:
                            self._obs.put(self._store, f"{PLACE}/{name}", content)
                            self._sent[name] = content
                    if self._asked is None and (text := self._get(STOP)) is not None:
                        self._asked = _reason(text)
                    if is_last and self._asked is not None:
                        self._obs.delete(self._store, f"{PLACE}/{STOP}")
                if is_last:
                    self._has_arrived = True
                    return
            except UserError as error:
                log.warning(f"the records of the job do not arrive: {error}; it is tried again", extra=ONCE)
            if is_last:
                time.sleep(LAST_SECONDS_BETWEEN)
            self._end.wait(SECONDS_BETWEEN)

    def _contents(self) -> dict[str, bytes]:
        return {FILE: (self._folder / FILE).read_bytes(), LOG: end_of(self._folder / LOG, LOG_BYTES), **self._wanted()}

    def _get(self, name: str) -> bytes | None:
        if self._store is None:
            return None
        with reasons_said(self._address):
            try:
                return bytes(self._obs.get(self._store, f"{PLACE}/{name}").bytes())
            except FileNotFoundError:
                return None


def end_of(path: Path, size: int) -> bytes:
    """The last bytes of a file; none without one."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - size, 0))
        return file.read()


def _object(text: bytes | None) -> dict[str, Any]:
    """A JSON object; empty without one, or where a full disk has cut it off."""
    try:
        return dict(json.loads(text or b"{}"))
    except ValueError:
        return {}


def _reason(text: bytes) -> str:
    """What a file `stop` says: a text, or JSON with `reason`."""
    said = text.decode(errors="replace").strip()
    try:
        return str(json.loads(said)["reason"])
    except (ValueError, KeyError, TypeError):
        return said or "it was asked to stop"
