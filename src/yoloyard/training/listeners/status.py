"""`status.json` in the run folder: the state of the run, where it is, and why it ended, as it goes on.

`common/run_folder.py` reads the file.
"""

import json
import os
import platform
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from yoloyard.common.errors import DivergedError, UserError
from yoloyard.common.files import write_soon
from yoloyard.common.run_folder import STATUS
from yoloyard.training.interrupt import Interrupted
from yoloyard.training.listeners import events
from yoloyard.training.listeners.events import Event

SECONDS_BETWEEN_WRITES = 5.0


class Status:
    """A listener that keeps `status.json` in the run folder."""

    def __init__(self) -> None:
        self._folder: Path | None = None  # of a run that has begun
        self._facts: dict[str, Any] = {}
        self._since = self._written = 0.0

    def __call__(self, event: Event) -> None:
        """Take note of an event; write at the beginning, at the end, and every few seconds between them."""
        now, updated = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
        match event:
            case events.RunStarted():
                self._folder, self._since, self._written = event.folder, now - event.seconds, 0.0
                self._facts = {
                    "state": "running", "reason": "", "host": platform.node(), "pid": os.getpid(), "started": updated,
                    "epoch": event.epoch + 1, "epochs": event.setup.config.epochs, "step": 0, "steps": 0,
                }  # fmt: skip
            case events.EpochStarted():
                self._facts |= {"epoch": event.epoch, "epochs": event.epochs, "step": 0, "steps": event.batches}
            case events.StepFinished():
                self._facts["step"] = event.batch
            case events.RunFinished():
                self._facts["state"], self._facts["reason"] = ending(event)
        is_due = isinstance(event, events.RunStarted | events.RunFinished)
        if self._folder and (is_due or now - self._written > SECONDS_BETWEEN_WRITES):
            self._written = now
            self._facts |= {"updated": updated, "seconds": round(now - self._since, 1)}
            write_soon(self._folder / STATUS, json.dumps(self._facts, indent=1).encode())


def ending(event: events.RunFinished) -> tuple[str, str]:
    """The state that a run has ended in, and what says so."""
    match event.error:
        case None:
            return "finished", f"epoch {event.epochs} was the last, and the report is written"
        case Interrupted() as error:
            return "interrupted", f"{signal.Signals(error.exit_code - 128).name} came; everything is saved"
        case DivergedError() as error:
            return "diverged", str(error)
        case UserError() as error:
            return "failed", str(error)
        case KeyboardInterrupt() | SystemExit():
            return "interrupted", "it was stopped at once, without a save"
        case error:
            return "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"
