"""Copies of a run at an object store (`--backup`), made beside training by a thread of their own."""

import json
import logging
import math
import secrets
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yoloyard.common.errors import UserError
from yoloyard.common.files import link_or_copy, write_whole_text
from yoloyard.storage.address import reason
from yoloyard.storage.copies import CHECKPOINT, Copies, Facts, SupersededError, TakenOverError, facts_of, utc_now
from yoloyard.storage.fetch import NOTE, read_note
from yoloyard.training.interrupt import Interrupted, InterruptRequest
from yoloyard.training.listeners import events
from yoloyard.training.listeners.events import Event
from yoloyard.training.setup.setup import Setup

log = logging.getLogger(__name__)

WAITING = ".backup"  # in the run folder: links to the files that are still to be sent
LONGEST_PAUSE = 60.0  # seconds between two attempts; the first pause is 2
LONGEST_END_PAUSE = 5.0  # when the run is over
STALLED_SECONDS = 600.0  # the end of a run waits no longer for a server that takes nothing


@dataclass
class Waiting:
    """The files of a run at one moment, to be sent."""

    folder: Path
    since: float  # monotonic seconds; of the oldest moment that it stands for


class Backup:
    """A listener that sends each checkpoint, and the other files of the run, to the address of `--backup`.

    The thread sends one moment at a time, and tries it again until it has arrived or there is a newer one.
    `finish` must be called when training is over.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()  # of what follows
        self._next: Waiting | None = None
        self._sending: Waiting | None = None
        self._is_ending, self._is_over = False, False  # the run; the wait for the last copy
        self._has_missed = False  # the last checkpoint, because the disk failed
        self._moved = 0.0  # monotonic: when something arrived last
        self._error = ""  # of the last attempt
        self._arrived: dict[str, Any] = {}  # epoch, position and time of the newest copy
        self._bytes = 0  # that are still to be sent

    def __call__(self, event: Event) -> None:
        """Begin with the run, take each checkpoint, and what the run leaves at its end."""
        match event:
            case events.RunStarted() if event.setup.config.backup:
                self._begin(event.setup)
            case events.CheckpointWritten() | events.RunFinished() if self._thread is not None:
                self._take()

    def status(self) -> str:
        """How far behind the copies are, for the line of progress; empty without any."""
        if self._thread is None:
            return ""
        return f"backup {self._behind_seconds():.0f} s behind" if self._is_behind() else "backed up"

    def finish(self, error: Exception | None = None) -> None:
        """Wait until all has arrived, and say where it is; `error` ended the run.

        A run that was asked to stop waits until `--grace-seconds` after the signal. Raises UserError if the last
        checkpoint has not arrived and the run has not failed itself.
        """
        if self._thread is None:
            return
        until = math.inf
        if isinstance(error, Interrupted):
            until = error.asked_at + self._config.grace_seconds
        with InterruptRequest(silent=True) as interrupt, self._changed:
            self._is_ending, self._moved = True, time.monotonic()
            self._changed.notify()
            if self._is_behind():
                log.info(f"waiting until the last checkpoint has arrived in {self._address}")
            while self._is_behind() and self._thread.is_alive():
                self._changed.wait(0.2)
                if interrupt.asked_at is not None:
                    until = min(until, interrupt.asked_at + self._config.grace_seconds)
                if time.monotonic() > min(until, self._moved + STALLED_SECONDS):
                    break
            missing, self._is_over = self._is_behind() or self._has_missed, True
            self._changed.notify()
        shutil.rmtree(self._folder / WAITING, ignore_errors=True)
        if not missing and not self._arrived:
            return  # the run ended before its first checkpoint
        if not missing:
            log.info(
                f"the last checkpoint, weights and records are in {self._address}; go on from anywhere with: "
                f"yoloyard train --resume {self._address}"
            )
            return
        why = f" ({self._error})" if self._error else ""
        former = f"that of {self._arrived['epoch']} epochs" if self._arrived else "none"
        line = (
            f"the last checkpoint did not arrive in {self._address}{why}; of those before, {former} did. All is in "
            f"{self._folder}, and is sent when the run goes on"
        )
        if error is None:
            raise Interrupted(line, interrupt.signal) if interrupt.signal else UserError(line)
        log.warning(line)

    def _begin(self, setup: Setup) -> None:
        """Claim the address. Raises UserError or UsageError: the run has not begun yet."""
        import obstore.exceptions

        self._folder, self._config = setup.folder.absolute(), setup.config
        self._address = str(setup.config.backup).rstrip("/")
        note = read_note(self._folder)
        self._run, self._fetched = note.get("run") or secrets.token_hex(8), note.get("fetched")
        self._copies = Copies(self._address, setup.config.backup_endpoint, create=True)
        try:
            self._copies.claim(self._run, self._folder.name)
        except (obstore.exceptions.BaseError, OSError) as error:
            raise UserError(f"--backup {self._address}: {reason(error)}") from error
        shutil.rmtree(self._folder / WAITING, ignore_errors=True)
        self._write_note()
        log.info(f"checkpoints, weights and records are copied to {self._address}")
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        self._take()  # what a run that goes on could not send before

    def _take(self) -> None:
        """Keep the files of this moment, by links: none of them is ever changed in place."""
        if not (self._folder / CHECKPOINT / "manifest.json").exists():  # the first one is still to come
            return
        moment = Waiting(self._folder / WAITING / secrets.token_hex(4), time.monotonic())
        try:
            checkpoint, weights = (self._folder / CHECKPOINT).iterdir(), self._folder.glob("weights/*")
            for file in (*checkpoint, *weights, *self._folder.iterdir()):
                if file.is_file() and not file.name.startswith(".") and file.name != NOTE:
                    target = moment.folder / file.relative_to(self._folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy(file, target)
        except OSError as error:
            shutil.rmtree(moment.folder, ignore_errors=True)
            log.warning(f"this checkpoint is not copied to {self._address}: {error}; the next one will be")
            self._has_missed = True
            return
        self._has_missed = False
        with self._changed:
            former, self._next = self._next, moment
            if former is not None:
                moment.since = former.since
            self._changed.notify()
        if former is not None:
            shutil.rmtree(former.folder, ignore_errors=True)

    def _is_behind(self) -> bool:
        return (self._sending or self._next) is not None

    def _behind_seconds(self) -> float:
        oldest = self._sending or self._next
        return 0.0 if oldest is None else time.monotonic() - oldest.since

    def _work(self) -> None:
        """Send what waits, one moment after the other, until `finish` waits no longer."""
        pause = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._is_over)
                if self._is_over:
                    return
                self._sending = moment = self._next
                self._next = None
            assert moment is not None
            try:
                self._send(moment.folder)
            except SupersededError:
                self._give_back(moment)
                continue
            except Exception as error:  # noqa: BLE001  # training does not depend on it, and it is tried again
                if self._is_over:
                    return
                pause = min(max(2.0, 2 * pause), LONGEST_PAUSE)
                line = str(error) if isinstance(error, UserError) else reason(error)
                if not self._error:
                    log.warning(f"backup: {line}; training goes on, and it is tried again")
                with self._changed:
                    self._error = line
                self._write_note()
                self._give_back(moment)
                if isinstance(error, TakenOverError):
                    return
                with self._changed:
                    was_ending = self._is_ending
                    seconds = min(pause, LONGEST_END_PAUSE) if was_ending else pause
                    self._changed.wait_for(lambda: self._is_ending != was_ending, seconds)  # noqa: B023
                continue
            if self._error:
                log.info(f"backup: copies arrive again in {self._address}")
            with self._changed:
                self._sending, self._error, pause = None, "", 0.0
                self._changed.notify()
            self._write_note()
            shutil.rmtree(moment.folder, ignore_errors=True)

    def _give_back(self, moment: Waiting) -> None:
        """A moment that has not arrived: it waits again, unless there is a newer one, which then stands for it."""
        with self._changed:
            self._sending = None
            if self._next is None:
                self._next = moment
                return
            self._next.since = moment.since
        shutil.rmtree(moment.folder, ignore_errors=True)

    def _send(self, folder: Path) -> None:
        checkpoint: dict[str, Facts] = json.loads((folder / CHECKPOINT / "manifest.json").read_text())["files"]
        files = {CHECKPOINT + name: facts for name, facts in checkpoint.items()}
        paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        files |= {name: facts_of(path) for name, path in paths.items() if name not in files}
        progress = json.loads((folder / CHECKPOINT / "state.json").read_text())["progress"]
        place = progress["epoch"], progress["position"]
        is_kept = place[1] == 0 and (self._folder / "checkpoints" / f"epoch-{place[0]:04d}").exists()
        self._bytes = sum(facts["size"] for facts in files.values())
        self._write_note()

        def arrived(size: int) -> None:
            with self._changed:
                self._bytes -= size
                self._moved = time.monotonic()
                if self._is_over or (self._is_ending and self._next is not None):
                    raise SupersededError

        self._copies.send(folder, files, place, (is_kept, self._config.keep), arrived)
        self._arrived = {"epoch": place[0], "position": place[1], "time": utc_now()}

    def _write_note(self) -> None:
        note = {"address": self._address, "epoch": None, "position": None, "time": None} | self._arrived
        note |= {"behind_seconds": round(self._behind_seconds()), "waiting_bytes": self._bytes, "error": self._error}
        note |= {"run": self._run, "writer": self._copies.writer, "fetched": self._fetched}
        try:
            write_whole_text(self._folder / NOTE, json.dumps(note, indent=1))
        except UserError as error:
            log.info(f"{NOTE} is as it was before: {error}")
