"""Who waits for whom among the processes of a run, which one failed, and what is said about it.

Each process shows the others, in a store outside of them, where it is and that it lives. torch's own means are not
enough: monitored_barrier has one fixed time limit, breaks the group, and names the missing process on rank 0 alone, or
nowhere if that is rank 0. Error files know no process that hangs, nor any other host.
"""

import dataclasses
import json
import os
import queue
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch.distributed as dist

from yoloyard.common.errors import SilentError, UserError, memory_line, user_line
from yoloyard.common.files import whole_folder

START_SECONDS = 1800.0  # how late a process may be at an exchange before all have made their first steps
FIRST_PLACES = 5  # calls of `Team.reached` after which a process has made its first steps
REPORT_SECONDS = 3.0  # within which every process that lives and waits has noticed a failure
LOOK_SECONDS = 1.0  # between two looks of the watching thread
LAST_WORD_SECONDS = 2.0  # that the main thread has to report what the watching thread has found
ANSWER_SECONDS = 60.0  # that the store may take
END_SECONDS = 10.0  # that the main thread has to end after another process has reported a failure
LOST_CODE, UNEXPECTED_CODE = 75, 70  # exit codes where the launcher starts the processes again
APART_CODE = 76  # the same, but without the host whose process says why it ends


class LostProcessError(RuntimeError):
    """Another process has failed or shows no sign of life. `elsewhere`: this process is certainly not to blame."""

    def __init__(self, message: str, elsewhere: bool = True) -> None:
        super().__init__(message)
        self.elsewhere = elsewhere


@dataclasses.dataclass
class Shown:
    """What a process shows the others in the store."""

    namespace: str  # of `pid_namespace`
    pid: int
    place: str = "the beginning"  # where it is, in words for the user
    places: int = 0  # how many it has passed
    beat: int = 0  # grows as long as it lives
    in_long_work: bool = False
    failed: str = ""  # why it ends
    code: int = 1  # its exit code then
    left: bool = False  # it has ended without a failure
    host: str = ""  # its name and address, where there are several


def find_loss(
    rank: int, shown: Sequence[Shown], dead: Collection[int], silent: Sequence[float], still: float, limit: float
) -> LostProcessError | None:
    """What process `rank` can tell from what all have `shown`, by rank, or None while nothing is wrong.

    `dead`: ranks that have certainly ended; `silent`: seconds without a beat, by rank; `still`: seconds in which no
    process has moved or done long work. More than `limit` seconds are too long, and a few more here, since the main
    thread may notice the same and reports it better.
    """
    limit += REPORT_SECONDS
    others = {other: each for other, each in enumerate(shown) if other != rank and not each.left}
    failed = [other for other, each in others.items() if each.failed]
    for other in others:
        if other not in failed and (other in dead or silent[other] > limit):
            what = "was killed" if other in dead else "shows no sign of life"
            return LostProcessError(f"process {other} {what}")
    if failed:
        return LostProcessError(f"process {failed[0]} has failed", elsewhere=False)
    # A process that hangs has passed fewer places. If all are at the same place, nobody knows, and all report it.
    is_ahead = any(shown[rank].places > each.places for each in others.values())
    if others and still > limit + (0 if is_ahead else 2 * REPORT_SECONDS):
        return LostProcessError("no process gets any further")
    return None


class Watch:
    """What a process shows the others and sees of them. Without a `store` it is alone, and nothing happens."""

    def __init__(
        self, rank: int = 0, size: int = 1, store: "dist.Store | None" = None, hang_timeout: float = START_SECONDS
    ) -> None:
        self.rank, self.size, self.hang_timeout = rank, size, hang_timeout
        self.run_folder: Path | None = None  # for advice
        self.starts_again = starts_again()
        self.limit = START_SECONDS  # that a process may be late at an exchange
        self.shown = Shown(pid_namespace(), os.getpid())
        self.is_first_of_host = os.environ.get("LOCAL_RANK", "0") == "0" or size == 1
        self.ending = threading.Event()  # the main thread is on its way out
        self._store = None if store is None else _Answering(store)
        self._showing, self._speaking = threading.Lock(), threading.RLock()
        self._processes: dict[int, psutil.Process] = {}  # by rank, those that can be seen from here
        self._long_works = 0  # the same number in all processes
        self._loss: LostProcessError | None = None
        self.show()

    def show(self, **changes: Any) -> None:
        """Show the others what has changed, by the names of `Shown`."""
        with self._showing:  # two threads call this
            self.shown = dataclasses.replace(self.shown, **changes)
            if self._store is not None:
                self._store.set(f"shown/{self.rank}", json.dumps(dataclasses.asdict(self.shown)))

    @contextmanager
    def long_work(self) -> Iterator[None]:
        """For work that may take long; then each waits for all. Raises LostProcessError if one fails or is silent."""
        if self._store is None:
            yield
            return
        self._long_works += 1
        counter = f"long work {self._long_works}"
        self.show(in_long_work=True)
        yield
        self._wait_for_all(counter)
        self.show(in_long_work=False)

    def exchange(self, name: str, value: Any) -> list[Any]:
        """What all processes give under this `name`, by rank, in JSON's types. Raises LostProcessError.

        For before they can exchange anything otherwise.
        """
        if self._store is None:
            return [value]
        self._store.set(f"{name}/{self.rank}", json.dumps(value))
        self._wait_for_all(name)
        return [json.loads(text) for text in self._store.multi_get([f"{name}/{rank}" for rank in range(self.size)])]

    def _wait_for_all(self, counter: str) -> None:
        assert self._store is not None
        self._store.add(counter, 1)
        while self._store.add(counter, 0) < self.size:
            if self._loss is not None:
                raise self._loss
            time.sleep(LOOK_SECONDS / 50)

    def keep_watching(self) -> None:
        """In a thread: show that this process lives, and have the last word where the main thread can't."""
        # That may hang behind a kernel of a GPU that waits for a process that has ended. Looks are counted, not the
        # seconds of a clock, which goes on while all processes are stopped.
        silent, still, before = [0.0] * self.size, 0.0, [self.shown] * self.size
        while self._loss is None:
            if self.ending.wait(LOOK_SECONDS):
                return
            try:
                self.show(beat=self.shown.beat + 1)
                shown = self._all_shown()
            except RuntimeError as error:
                self._loss = LostProcessError(f"the connection to the other processes is lost ({error})")
                break
            still += LOOK_SECONDS
            for rank, (now, then) in enumerate(zip(shown, before, strict=True)):
                silent[rank] = 0.0 if now.beat != then.beat else silent[rank] + LOOK_SECONDS
                if now.places != then.places or now.in_long_work:
                    still = 0.0
            before = shown
            self._loss = find_loss(self.rank, shown, self._dead(shown), silent, still, self.limit)
        if self.ending.wait(LAST_WORD_SECONDS if self._loss.elsewhere else END_SECONDS):
            return
        with self._speaking:
            if self.ending.is_set():
                return
            explained = self.explained(self._loss) if self._loss.elsewhere else self._silent("another process says it")
            if not isinstance(explained, SilentError):
                sys.stderr.write(f"yoloyard: {explained}\n")
            # The main thread does not go on: what it would read from the device now must not reach a file.
            os._exit(explained.exit_code)

    def _all_shown(self) -> list[Shown]:
        assert self._store is not None
        keys = [f"shown/{rank}" for rank in range(self.size)]
        if self._store.check(keys):
            return [Shown(**json.loads(text)) for text in self._store.multi_get(keys)]
        there = [self._store.get(key) if self._store.check([key]) else None for key in keys]
        return [Shown(**json.loads(text)) if text else Shown("", 0) for text in there]

    def _dead(self, shown: Sequence[Shown]) -> set[int]:
        """The ranks that have certainly ended. Nobody can tell of a process of another host or container."""
        dead = set()
        for rank, each in enumerate(shown):
            if each.namespace == self.shown.namespace != "":
                try:
                    if rank not in self._processes:  # kept, so that psutil notices another process with its number
                        self._processes[rank] = psutil.Process(each.pid)
                    process = self._processes[rank]
                    if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                        dead.add(rank)
                except psutil.NoSuchProcess:
                    dead.add(rank)
        return dead

    def explained(self, error: Exception) -> UserError:
        """Who is to blame for `error`, in words for the user. One process alone says it; others get a SilentError."""
        if isinstance(error, SilentError):
            with suppress(RuntimeError):  # it has spoken, and its store has ended with it
                self._wait_for_speaker()  # whom the launcher would end with this process
            return error
        with self._speaking:
            self.ending.set()
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGINT, signal.SIGTERM):  # by which the launcher ends all: there is a line to say
                    signal.signal(number, signal.SIG_IGN)
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            line, memory = user_line(error), memory_line(error)
            text = memory or (f"{line}: {text}" if line else text)
            try:
                return self._blame(error, text, is_final=bool(line or memory))
            except RuntimeError as lost:  # the store has ended, and so has the process that held it
                place = self.shown.place
                return self._lost(f"the connection to the other processes is lost, at {place} ({text}; {lost})")

    def _blame(self, error: Exception, text: str, is_final: bool) -> UserError:
        assert self._store is not None
        is_own, code = not _is_of_communication(error), 1
        if isinstance(error, UserError):
            code = error.exit_code
        elif self.starts_again and not is_final:
            code = UNEXPECTED_CODE if is_own else LOST_CODE
        self.show(failed=text, code=code)
        if is_own:
            self._store.set("failed", json.dumps([text, code]))
        else:
            self._wait_for_speaker()  # the process that failed says so itself, in a moment
        if self._store.add("speakers", 1) > 1:  # all found the same, or one failure led to another
            return self._silent(text, code)
        if is_own:
            if isinstance(error, UserError) and self.rank == 0:
                return error
            where = f" on {self.shown.host}" if self.shown.host else ""
            named = UserError(f"process {self.rank} of {self.size}{where}, at {self.shown.place}: {text}")
            named.exit_code = code
            return named
        shown = self._all_shown()
        missing = {rank for rank, each in enumerate(shown) if not each.failed and not each.left}
        missing = missing & self._dead(shown) or missing  # if one was killed, the others are only slow to report it
        for rank in missing & self._processes.keys():
            with suppress(psutil.NoSuchProcess):
                self._processes[rank].kill()  # so that the launcher needn't wait for it
        hosts = [f" on {each.host}" if each.host else "" for each in shown]
        who = " and ".join(
            f"process {rank}{hosts[rank]}, last seen at {shown[rank].place}," for rank in sorted(missing)
        )
        said = f"{who} was killed or hangs" if who else f"the processes can't reach each other ({text})"
        ends = "this attempt" if self.starts_again else "the run"
        return self._lost(f"{said}; {ends} ends at {self.shown.place}")

    def _lost(self, said: str) -> UserError:
        """`said`, and how the run goes on."""
        advice = "nothing was saved yet"
        if self.starts_again:
            advice = "it starts again from its last save"
        elif self.run_folder is not None and whole_folder(self.run_folder / "checkpoints" / "last").exists():
            folder = shlex.quote(str(self.run_folder))
            advice = f"the last checkpoint is whole: go on with yoloyard train --resume {folder}"
        elif self.run_folder is not None and not self.run_folder.exists():
            advice = f"what was saved is on the host of rank 0, in {self.run_folder}: go on with --resume"
        error = UserError(f"{said}; {advice}")
        error.exit_code = LOST_CODE if self.starts_again else 1
        return error

    def _silent(self, text: str, code: int | None = None) -> SilentError:
        """The error of a process that leaves it to another one to say why all end, with the exit code of that one."""
        if self._store is not None and self._store.check(["failed"]):
            text, code = json.loads(self._store.get("failed"))
        return SilentError(text, code or (LOST_CODE if self.starts_again else 1))

    def _wait_for_speaker(self) -> None:
        for _ in range(10):
            if self._store is None or self._store.add("speakers", 0):
                return
            time.sleep(REPORT_SECONDS / 10)


class _Answering:
    """A store of which each call raises LostProcessError after ANSWER_SECONDS.

    torch's own wait without end where a link is cut; they keep a thread each then, which ends with the process.
    """

    def __init__(self, store: "dist.Store") -> None:
        self._store, self._is_lost = store, False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._call, getattr(self._store, name))

    def _call(self, function: Callable[..., Any], *arguments: object) -> Any:
        answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()

        def call() -> None:
            try:
                answers.put((function(*arguments), None))
            except Exception as error:  # noqa: BLE001  # it is raised below
                answers.put((None, error))

        threading.Thread(target=call, daemon=True).start()
        try:
            answer, error = answers.get(timeout=0.1 if self._is_lost else ANSWER_SECONDS)
        except queue.Empty:
            self._is_lost = True
            raise LostProcessError(f"the store has not answered for {ANSWER_SECONDS:.0f} s") from None
        if error is not None:
            raise error
        return answer


def apart(line: str) -> UserError:
    """The error of a host that has no place in the run; where the run starts again, it does so without this host."""
    error = UserError(line)
    error.exit_code = APART_CODE if starts_again() else error.exit_code
    return error


def starts_again() -> bool:
    """Does the launcher start the processes again if one fails?"""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def pid_namespace() -> str:
    """Where a process number means one process: this start of the system and this namespace; empty if not known."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # it shows another namespace
            return ""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_of_communication(error: Exception) -> bool:
    """Did another process cause it? gloo raises plain RuntimeErrors, so their text tells."""
    if isinstance(error, dist.DistError | LostProcessError):
        return True
    marks = ("gloo", "Connection closed by peer", "Connection reset", "Timed out waiting")
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in marks)
