"""What keeps a job: it starts its training, watches it, ends it at the limits, and sees that all is saved.

The guard starts it again where it ends without one of its own exit codes. Nothing that it needs is in memory alone: the
next one finds the training by its note, the time in the ledger, and what was decided in keeper.json.
"""

import fcntl
import json
import logging
import math
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from yoloyard.common.errors import UserError, last_line
from yoloyard.common.files import write_soon
from yoloyard.common.log import time_text
from yoloyard.common.run_folder import STATUS, read_object, read_run
from yoloyard.jobs.bill import write_bill
from yoloyard.jobs.launched import FILE, read_launch
from yoloyard.jobs.node.data import fetch_data
from yoloyard.jobs.node.ledger import Clock, Ledger
from yoloyard.jobs.node.limits import Idle, limit_reached
from yoloyard.jobs.node.records import LOG, STATE, Records, end_of
from yoloyard.jobs.node.training import GRACE_SECONDS, SAVE_SECONDS, Training
from yoloyard.jobs.node.upload import has_checkpoint, is_newer_there, send_newest
from yoloyard.storage.address import reasons_said
from yoloyard.storage.copies import Copies, TakenOverError, utc_text

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
WRITE_SECONDS = 5.0
UPLOAD_SECONDS = 1800.0  # of trying to save the last checkpoint elsewhere; then the host is released without it
RECORDS_SECONDS = 120.0  # that the last records may take to get to the backup
RANK_0_SECONDS = 120.0  # that the other hosts wait for what the one of rank 0 says of the end
MOST_FAILURES = 3  # of a training that the system has ended, without a save between them
CODES = {"finished": 0, "stopped": 0, "limit": 0, "failed": 3, "interrupted": 128 + signal.SIGTERM}
WRONG_USAGE = 2
RANKS = ("SKYPILOT_NODE_RANK", "PET_NODE_RANK", "JOB_COMPLETION_INDEX")


class OverError(Exception):
    """The job is over on this host."""

    def __init__(self, state: str, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.state, self.reason, self.code = state, reason, CODES[state] if code is None else code


def keep(folder: Path, clock: Clock | None = None) -> int:
    """Keep the job in `folder` until it is over here; returns the exit status for the guard.

    Another keeper that is at work there is waited for.
    """
    folder = folder.resolve()
    with (folder / "keeper.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return Keeper(folder, clock or Clock()).keep()


class Keeper:
    """Keeps the job in `folder`, by this clock."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder, self._clock = folder, clock
        self._launch = launch = read_launch(folder / FILE)
        self._run = folder / "runs" / launch.run
        self._address, self._endpoint = f"{launch.backup}/{launch.run}", launch.train.get("backup_endpoint")
        self._rank = int(next((os.environ[name] for name in RANKS if name in os.environ), 0)) if launch.nodes > 1 else 0
        self._attempt = os.environ.get("YOLOYARD_ATTEMPT") or f"{int(time.time())}-{os.getpid()}"
        self._ledger = Ledger(folder, launch, self._attempt, clock)
        self._records = Records(folder, launch)
        self._idle = Idle(launch.idle_minutes, clock.now())
        self._state, self._reason, self._code = "starting", "", 0
        self._contents: dict[str, bytes] = {}  # the records of this moment, by their names
        self._written, self._signal, self._guard = -math.inf, "", os.getppid()

    def keep(self) -> int:
        """From the first look at the records to the last."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        try:
            former, attempts = self._records.former()
            is_same = former.get("launch") == self._launch.time
            if is_same and (former["state"] in ("finished", "stopped", "limit") or former.get("over") == self._attempt):
                log.info(f"the job is over already: {former['state']}: {former['reason']}")
                return int(former["code"])
            if self._rank == 0:  # the attempts there are those of rank 0, and one of them may be going on
                self._ledger.add(attempts)
            self._enter("starting")
            if self._rank == 0:
                self._records.start(lambda: self._contents)
            self._look(None, False)
            if self._launch.data_source:
                self._fetch(self._launch.data_source)
            self._train()
        except OverError as over:
            self._end(over)
        except UserError as error:  # of the records: without them nobody knows what was paid already
            self._end(OverError("failed", str(error)))
        return self._code

    def _ask(self, number: int, frame: object) -> None:
        """What signals do: the next look saves and ends."""
        self._signal = signal.Signals(number).name

    def _beat(self) -> None:
        """Show the guard that the keeper lives, count the time, write the state."""
        alive = self._folder / "alive"
        try:
            alive.touch()
        except OSError as error:
            log.warning(f"cannot write {alive}: {error}", extra={"once": True})
        self._ledger.look()
        if self._clock.now() - self._written >= WRITE_SECONDS:
            self._written = self._clock.now()
            self._contents = {STATE: self._document(), f"ledger/{self._attempt}.json": self._ledger.record()}
            write_soon(self._folder / STATE, self._contents[STATE])
            self._ledger.write()
        if os.getppid() != self._guard and self._guard != 1:
            log.info("the guard is gone: another one is started")
            self._guard = os.getppid()
            variables = os.environ | {"YOLOYARD_ATTEMPT": self._attempt}
            subprocess.Popen(["sh", "guard.sh"], cwd=self._folder, env=variables, start_new_session=True)

    def _status(self) -> dict[str, Any]:
        """What the training says of itself; empty before it does."""
        return read_object(self._run / STATUS)

    def _enter(self, state: str, reason: str = "") -> None:
        """Go over to another state, which is written at once."""
        self._state, self._reason, self._written = state, reason, -math.inf
        self._beat()

    def _look(self, seen: object, is_stepping: bool) -> None:
        """Raise OverError where the job must end; `seen` and `is_stepping` as in `Idle.look`."""
        self._beat()
        is_first = self._rank == 0
        if self._signal:
            raise OverError("interrupted", f"{self._signal} came")
        if is_first and (reason := self._records.stop_asked()) is not None:
            raise OverError("stopped", reason)
        if line := limit_reached(self._launch, self._ledger.seconds, self._ledger.cost, is_first):
            raise OverError("limit", line)
        if is_first and (line := self._idle.look(self._clock.now(), seen, is_stepping)):
            raise OverError("limit", line)

    def _fetch(self, source: str) -> None:
        """Bring the data here. Raises OverError."""
        try:
            fetch_data(source, self._endpoint, self._folder / "data", lambda size: self._look(size, False))
        except (UserError, OSError) as error:
            raise OverError("failed", f"the data can't be fetched: {error}") from error

    def _train(self) -> None:
        """Train until the run is over, starting again what the system has ended. Raises OverError."""
        failures, saved, last = 0, None, self._run / "checkpoints/last/state.json"
        while True:
            before: dict[str, Any] | None = None
            if (training := Training.running(self._folder)) is None:
                if self._rank == 0 and self._run.exists() and read_run(self._run).state == "finished":
                    raise OverError("finished", "the run is finished")
                before = self._status()
                try:
                    training = Training.start(self._folder, self._launch, self._resume())
                except (UserError, OSError) as error:
                    raise OverError("failed", f"the training can't be started: {error}") from error
            self._enter("running")
            try:
                while training.is_there():
                    status = self._status()
                    is_new = status != before and bool(status.get("step"))
                    self._look(status, is_new and status.get("state") == "running")
                    self._clock.sleep(LOOK_SECONDS)
            except OverError as over:
                self._let_save(training, over)
                raise
            why = self._judge(training.code, before)
            failures = failures + 1 if saved == (saved := last.stat().st_mtime if last.exists() else None) else 1
            if failures >= MOST_FAILURES or self._launch.nodes > 1:
                raise OverError("failed", why)
            log.info(f"{why}; it is started again")

    def _resume(self) -> str | None:
        """What the training goes on from: its run folder here, its copies elsewhere, or nothing. Raises UserError."""
        here = str(self._run) if any(self._run.glob("checkpoints/*/state.json")) else None
        if not self._launch.backup:
            return here
        address, copies = self._address, Copies(self._address, self._endpoint, create=True)
        with reasons_said(address):
            if here and not is_newer_there(self._run, copies):
                return here
            if here:
                aside = self._run.with_name(f".{self._launch.run}-{self._attempt}")
                log.info(f"another host went on with the run: {address} counts, and what was here is in {aside}")
                self._run.rename(aside)
            if copies.read_manifests():
                return address
            earlier = any(each.id != self._attempt for each in self._ledger.attempts)
            if self._rank == 0 and earlier and not self._run.exists() and copies.read_owner() is not None:
                log.info(f"an attempt on another host ended before its first checkpoint: {address} is taken over")
                copies.remove_owner()
        return None

    def _judge(self, code: int | None, before: Any) -> str:
        """Why a training that ended by itself has to start again. Raises OverError where it has not."""
        status = self._status()
        said = status if status != before else {}
        if code == 0 or (self._rank == 0 and said.get("state") == "finished"):
            raise OverError("finished", said.get("reason") or "the training ended with status 0")
        line = (
            said.get("reason")
            or last_line(end_of(self._folder / LOG, 4000).decode(errors="replace"))
            or f"exit status {code}"
        )
        if self._rank > 0:
            self._follow()
        if code == WRONG_USAGE:
            raise OverError("failed", line, WRONG_USAGE)
        if code == 1 or said.get("state") in ("failed", "diverged"):
            raise OverError("failed", line)
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"the training was ended by {name}" + ": too little memory?" * (name == "SIGKILL")
        return f"the training ended with status {code}" if code else "the training ended before the run was over"

    def _follow(self) -> None:
        """On other hosts than that of rank 0: end as that one does, where the backup says it. Raises OverError."""
        until = self._clock.now() + RANK_0_SECONDS
        while self._launch.backup and self._clock.now() < until:
            self._beat()
            state = self._records.there()
            if state.get("launch") == self._launch.time and state.get("over"):
                raise OverError(state["state"], f"as on the host of rank 0: {state['reason']}", state["code"])
            self._clock.sleep(LOOK_SECONDS)

    def _let_save(self, training: Training, over: OverError) -> None:
        """Ask the training to save and end, and wait; one that does not save is killed."""
        log.info(f"{over.state}: {over.reason}; the training is asked to save and end")
        self._enter("saving", over.reason)
        training.ask_to_end()
        asked = self._clock.now()
        while training.is_there():
            self._beat()
            waited = self._clock.now() - asked
            is_saved = self._status().get("state", "running") != "running"
            if waited > (SAVE_SECONDS + GRACE_SECONDS if is_saved else SAVE_SECONDS):
                log.info(f"it has not ended after {time_text(waited)}: it is killed")
                training.kill()
                return
            self._clock.sleep(LOOK_SECONDS)

    def _end(self, over: OverError) -> None:
        """Save what there is elsewhere, and write down how it ended."""
        problem = None
        if self._rank == 0:
            status = self._status()
            if over.state in ("stopped", "limit", "interrupted") and status.get("state") == "finished":
                over = OverError("finished", f"{status['reason']}; meanwhile: {over.reason}")
            self._enter("saving", over.reason)
            write_bill(self._run, self._launch, self._ledger.attempts, over.state, over.reason)
            problem = self._upload()
        self._code = over.code
        self._enter(over.state, "; ".join(filter(None, (over.reason, problem))))
        log.info(f"{self._state}: {self._reason}")
        if self._rank == 0 and not self._records.finish(RECORDS_SECONDS):
            log.info("the last records of the job have not arrived at its backup")

    def _upload(self) -> str | None:
        """See that the newest checkpoint is whole at the backup; what is wrong after UPLOAD_SECONDS."""
        if not self._launch.backup or not has_checkpoint(self._run):
            return None
        address, until, pause = self._address, self._clock.now() + UPLOAD_SECONDS, 5.0

        def moved(size: int) -> None:
            self._beat()
            if self._clock.now() > until:
                raise UserError("it takes too long")

        while True:
            try:
                send_newest(self._run, address, self._endpoint, int(self._launch.train.get("keep") or 3), moved)
                return None
            except TakenOverError as error:
                return f"nothing was sent to {address}: {error}"
            except (UserError, OSError, ValueError, KeyError) as error:
                problem = f"the last checkpoint is not in {address} ({error}): it is in {self._run} alone"
            if self._clock.now() + pause > until:
                return problem
            log.info(f"{problem}; it is tried again")
            for _ in range(int(pause / LOOK_SECONDS) + 1):
                self._beat()
                self._clock.sleep(LOOK_SECONDS)
            pause = min(2 * pause, 60.0)

    def _document(self) -> bytes:
        """keeper.json."""
        status = self._status()
        step = {name: status.get(name) for name in ("state", "epoch", "epochs", "step", "steps", "updated", "seconds")}
        is_over, cost = self._state in CODES, self._ledger.cost
        content = {
            "state": self._state, "reason": self._reason, "code": self._code if is_over else None,
            "over": self._attempt if is_over else None, "launch": self._launch.time, "run": self._launch.run,
            "attempts": len(self._ledger.attempts), "seconds": round(self._ledger.seconds, 1),
            "cost": cost and round(cost, 4), "host": self._ledger.now.host, "updated": utc_text(), "step": step,
        }  # fmt: skip
        return json.dumps(content, indent=1).encode()
