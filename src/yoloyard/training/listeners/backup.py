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
from typing import Any, Self

from yoloyard.common.errors import UserError
from yoloyard.common.files import link_or_copy, write_whole_text
from yoloyard.storage.address import reason, reasons_said
from yoloyard.storage.copies import CHECKPOINT, NOTE, Copies, TakenOverError, files_of, manifest_of, utc_text
from yoloyard.storage.fetch import read_note
from yoloyard.training.interrupt import Interrupted, InterruptRequest
from yoloyard.training.listeners import events
from yoloyard.training.listeners.events import Event
from yoloyard.training.setup.setup import Setup

log = logging.getLogger(__name__)

WAITING = ".backup"  # in the run folder: links to the files that are still to be sent
LONGEST_PAUSE = 60.0  # seconds between two attempts; the first pause is 2
LONGEST_END_PAUSE = 5.0  # when the run is over
STALLED_SECONDS = 600.0  # the end of a run waits no longer for a server that takes nothing


class SupersededError(Exception):
    """Something newer is to be sent, or nothing any more."""


@dataclass
class Moment:
    """The files of a run at one moment, to be sent."""

    folder: Path
    since: float  # seconds since 1970; of the oldest moment that it stands for
    most: int = 0  # bytes that one attempt has sent


class Backup:
    """A listener that sends each checkpoint, and the other files of the run, to the address of `--backup`.

    A thread sends the newest moment, and tries again until it has arrived or there is a newer one. The end of the
    context waits until all has arrived.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()  # of what follows
        self._waiting: list[Moment] = []  # what is being sent or could not be sent, and the newest after that
        self._is_ending = self._is_over = False  # the run; the wait for the last copy
        self._has_missed = False  # the last checkpoint, because the disk failed
        self._moved = 0.0  # monotonic: when something was sent last
        self._error = ""  # of the last attempt
        self._arrived: dict[str, Any] = {}  # epoch and time of the newest copy

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
        if waiting := self._waiting[:1]:
            return f"backup {time.time() - waiting[0].since:.0f} s behind"
        return "backed up" if self._arrived else "no backup yet"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Wait until all has arrived, and say where it is; `error` ended the run.

        A run that was asked to stop waits until `--grace-seconds` after the signal. Raises UserError if the last
        checkpoint has not arrived and the run has not failed itself.
        """
        if self._thread is None or (error is not None and not isinstance(error, Exception)):
            return
        until = error.asked_at + self._config.grace_seconds if isinstance(error, Interrupted) else math.inf
        with InterruptRequest(silent=True) as interrupt, self._changed:
            self._is_ending, self._moved = True, time.monotonic()
            self._changed.notify()
            if self._waiting:
                log.info(f"waiting until the last checkpoint has arrived in {self._address}")
            while self._waiting and self._thread.is_alive():
                self._changed.wait(0.2)
                if interrupt.asked_at is not None:
                    until = min(until, interrupt.asked_at + self._config.grace_seconds)
                if time.monotonic() > min(until, self._moved + STALLED_SECONDS):
                    break
            is_missing, self._is_over = bool(self._waiting) or self._has_missed, True
            self._changed.notify()
        if not self._waiting:
            self._thread.join()  # which may still write its last note
        shutil.rmtree(self._folder / WAITING, ignore_errors=True)
        if is_missing:
            why = f" ({self._error})" if self._error else ""
            former = f"that of {self._arrived['epoch']} epochs" if self._arrived else "none"
            then = "goes on" if error else "is extended (--resume, --epochs)"
            line = (
                f"the last checkpoint did not arrive in {self._address}{why}; of those before, {former} did. All is in "
                f"{self._folder}, and is sent when the run {then}"
            )
            if error is None:
                raise Interrupted(line, interrupt.signal) if interrupt.signal else UserError(line)
            log.warning(line)
        elif self._arrived:
            log.info(
                f"the last checkpoint, weights and records are in {self._address}; go on from anywhere with: "
                f"yoloyard train --resume {self._address}"
            )

    def _begin(self, setup: Setup) -> None:
        """Claim the address. Raises UserError or UsageError: the run has not begun yet."""
        self._folder, self._config = setup.folder.absolute(), setup.config
        self._address = str(setup.config.backup).rstrip("/")
        note = read_note(self._folder)
        if note.get("epoch") is not None and not (self._folder / "checkpoints").exists():
            note = {}  # of another run, which this one replaces here (`--exist-ok`)
        self._run, self._fetched = note.get("run") or secrets.token_hex(8), note.get("fetched")
        self._arrived = {name: note[name] for name in ("epoch", "time") if note.get(name) is not None}
        with reasons_said(f"--backup {self._address}"):
            self._copies = Copies(self._address, setup.config.backup_endpoint, create=True)
            self._copies.claim(self._run, self._folder.name)
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
        moment = Moment(self._folder / WAITING / secrets.token_hex(4), time.time())
        try:
            for file in files_of(self._folder):
                target = moment.folder / file.relative_to(self._folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(file, target)
        except (OSError, ValueError) as error:
            shutil.rmtree(moment.folder, ignore_errors=True)
            log.warning(f"this checkpoint is not copied to {self._address}: {error}; the next one will be")
            self._has_missed = True
            return
        self._has_missed = False
        with self._changed:
            former, self._waiting[1:] = self._waiting[1:], [moment]
            self._changed.notify()
        for each in former:
            shutil.rmtree(each.folder, ignore_errors=True)

    def _work(self) -> None:
        """Send the newest of what waits, until the wait for the last copy is over."""
        pause = 0.0
        while True:
            with self._changed:
                self._changed.wait(min(pause, LONGEST_END_PAUSE) if self._is_ending else pause)
                self._changed.wait_for(lambda: self._waiting or self._is_over)
                if self._is_over:
                    return
                *former, moment = self._waiting
                for each in former:
                    moment.since = each.since
                    shutil.rmtree(each.folder, ignore_errors=True)
                self._waiting = [moment]
            try:
                self._send(moment)
            except SupersededError:
                pause = 0.0
                continue
            except Exception as error:  # noqa: BLE001  # training does not depend on it, and it is tried again
                pause = min(max(2.0, 2 * pause), LONGEST_PAUSE)
                line = str(error) if isinstance(error, UserError) else reason(error)
                if not self._error:
                    log.warning(f"backup: {line}; training goes on, and it is tried again")
                self._error = line
                self._write_note()
                if isinstance(error, TakenOverError):
                    return
                continue
            if self._error:
                log.info(f"backup: copies arrive again in {self._address}")
            pause, self._error = 0.0, ""
            with self._changed:
                self._waiting.remove(moment)
                self._changed.notify()
            self._write_note()
            shutil.rmtree(moment.folder, ignore_errors=True)

    def _send(self, moment: Moment) -> None:
        folder, sent = moment.folder, 0
        manifest = manifest_of(self._folder, folder, [path for path in folder.rglob("*") if path.is_file()])
        self._write_note()

        def moved(size: int) -> None:
            nonlocal sent
            sent += size
            if sent > moment.most:
                moment.most, self._moved = sent, time.monotonic()
            if self._is_over or (self._is_ending and len(self._waiting) > 1):
                raise SupersededError

        self._copies.send(folder, manifest, self._config.keep, moved)
        self._arrived = {"epoch": manifest.epoch, "time": utc_text()}

    def _write_note(self) -> None:
        since = utc_text(self._waiting[0].since) if self._waiting else None
        note = {"address": self._address, "epoch": None, "time": None} | self._arrived
        note |= {"waiting_since": since, "error": self._error}
        note |= {"run": self._run, "writer": self._copies.writer, "fetched": self._fetched}
        try:
            write_whole_text(self._folder / NOTE, json.dumps(note, indent=1))
        except UserError as error:
            log.info(f"{NOTE} is as it was before: {error}")
