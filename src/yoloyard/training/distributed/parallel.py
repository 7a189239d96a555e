"""Several processes that train together: what the step must know of them, and how they wait, agree and fail.

In one process all of it does nothing. Rank 0 alone writes and talks. A process that is late at an exchange for longer
than `hang_timeout` ends the run, so whatever may take long, and not equally long, is done inside `Team.long_work` or
`Team.on_rank_0`, where the others wait as long as it shows signs of life.
"""

from __future__ import annotations

import dataclasses
import datetime
import inspect
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from yoloyard.common.device import PRECISIONS, Precision
from yoloyard.common.errors import SilentError, UserError, memory_line, user_line
from yoloyard.common.files import whole_folder
from yoloyard.training.distributed import process_identity
from yoloyard.training.interrupt import Interrupted

START_SECONDS = 1800.0  # that a process may be late at an exchange before all have made their first steps
FIRST_PLACES = 5  # calls of `Team.reached` after which a process has made them
REPORT_SECONDS = 3.0  # within which every process that lives and waits has noticed a failure
LOOK_SECONDS = 1.0  # between two looks of the thread that watches
LAST_WORD_SECONDS = 2.0  # that the main thread has to report what the thread that watches has found
END_SECONDS = 10.0  # that it has to end after another process has failed
LEAVE_SECONDS = 5.0  # that parting may take

Value = TypeVar("Value")


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, on the device, without waiting for it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


@contextmanager
def exchanging(network: nn.Module, is_due: bool) -> Iterator[None]:
    """Where gradients become their mean over the processes, if `is_due`; else each process adds up its own.

    `network` comes from `parallelize`, compiled or not. Only the last batch of an update needs the exchange, which
    then is of all of them.
    """
    if is_due or world_size() == 1:
        yield
        return
    with network.no_sync():  # type: ignore[operator]
        yield


def parallelize(model: nn.Module, device: torch.device, may_leave_out: bool = False) -> nn.Module:
    """The model as the step calls it: in several processes with gradients that become their mean.

    Parameters and buffers become those of the first process. BatchNorm's statistics are each process's own until
    `Update.even_out_statistics`. `may_leave_out`: a forward may not use all parameters, which torch finds out by a walk
    through the graph at each exchange; without it such a network raises.
    """
    if world_size() == 1:
        return model
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=0)
    devices = None if device.type == "cpu" else [device]
    wrapper = nn.parallel.DistributedDataParallel
    # Statistics are not sent round at every step; torch 2.13 gave that option another name.
    names = {"forward_sync_buffers", "broadcast_buffers"} & inspect.signature(wrapper).parameters.keys()
    # Gradients live in the memory that is exchanged, not in a second copy of it.
    options: dict[str, Any] = {max(names): False, "gradient_as_bucket_view": True}
    if may_leave_out:
        options["find_unused_parameters"] = True
        model = _WithSpare(model, device)
    return wrapper(model, device_ids=devices, **options)


class _WithSpare(nn.Module):
    """A network and a parameter that it never uses: where all are used, torch prints advice against the search."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network, self.spare = network, nn.Parameter(torch.zeros(1, device=device))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.network(images)
        return maps


class LostProcessError(RuntimeError):
    """Another process has failed or shows no sign of life."""


@dataclass
class Shown:
    """What a process shows the others in the store."""

    identity: str  # of `process_identity`
    place: str = "the beginning"  # where it is, as a person would say it
    places: int = 0  # how many it has passed
    beat: int = 0  # grows as long as it lives
    in_phase: bool = False
    failed: str = ""  # why it ends
    left: bool = False  # in good order


@dataclass(frozen=True)
class Loss:
    """Why a run can't go on. `elsewhere`: it is certain that this process is not to blame."""

    text: str
    elsewhere: bool


def find_loss(
    rank: int, shown: Sequence[Shown], silent_seconds: Sequence[float], still_seconds: float, limit: float
) -> Loss | None:
    """What process `rank` can tell from what all have `shown`, or None while nothing is wrong.

    `silent_seconds` says of each process for how long it has shown no beat, `still_seconds` for how long none has come
    to another place, nor was in a phase. Over `limit` seconds of either are too long; the main thread, which may notice
    it itself, comes first.
    """
    limit += REPORT_SECONDS
    others = [other for other, each in enumerate(shown) if other != rank and not each.left]
    living = [other for other in others if not shown[other].failed]
    for other in living:
        if process_identity.is_dead(shown[other].identity):
            return Loss(f"process {other} was killed", True)
        if silent_seconds[other] > limit:
            return Loss(f"process {other} shows no sign of life", True)
    for other in others:
        if shown[other].failed:
            return Loss(f"process {other} has failed", False)
    if others and still_seconds > limit:
        least = min(shown[other].places for other in others)
        # Who hangs has passed fewer places. Where all are at the same one, nobody knows, and all say so in the end.
        if shown[rank].places > least or still_seconds > limit + 2 * REPORT_SECONDS:
            return Loss("no process gets any further", True)
    return None


class Team:
    """The processes of a run. One process is a team of its own."""

    def __init__(self, rank: int = 0, size: int = 1, store: dist.Store | None = None, host_group: Any = None) -> None:
        self.rank, self.size = rank, size
        self.run_folder: Path | None = None  # for advice
        self.hang_timeout = START_SECONDS
        self._store, self._host_group = store, host_group
        self._phases = 0  # counted alike in all processes
        self._limit = START_SECONDS
        self._shown = Shown(process_identity.own_identity())
        self._showing = threading.Lock()
        self._ending = threading.Event()  # the main thread is on its way out
        self._speaking = threading.Lock()
        self._loss: Loss | None = None
        self._show()

    @property
    def is_rank_0(self) -> bool:
        """Is this the process that writes and talks?"""
        return self.rank == 0

    def reached(self, place: str) -> None:
        """Note for the others where this process is, as a person would say it."""
        self._show(place=place, places=self._shown.places + 1)
        if self._store is not None and self._shown.places == FIRST_PLACES:
            self._limit = self.hang_timeout
            seconds = datetime.timedelta(seconds=self._limit)
            dist.distributed_c10d._set_pg_timeout(seconds, self._host_group)

    def max(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._host_group)
        return int(numbers)

    def min(self, number: int) -> int:
        """The smallest of all processes' numbers."""
        return -self.max(-number)

    def gather(self, value: Value) -> list[Value]:
        """All processes' values by rank, in the first; nothing in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_rank_0 else None
        dist.gather_object(value, values, dst=0, group=self._host_group)
        return values or []

    def broadcast(self, value: Value | None) -> Value:
        """The first's value, in all processes."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0, group=self._host_group)
        return values[0]  # type: ignore[return-value]

    @contextmanager
    def long_work(self) -> Iterator[None]:
        """For work that may take long, and the processes unequally long: at its end each waits for all others.

        It waits as long as they show signs of life. Raises LostProcessError if one has failed or shows none.
        """
        self._phases += 1
        if self._store is None:
            yield
            return
        self._show(in_phase=True)
        yield
        self._store.set(f"phase/{self._phases}/{self.rank}", "done")
        for rank in range(self.size):
            while not self._store.check([f"phase/{self._phases}/{rank}"]):
                if self._loss is not None:
                    raise LostProcessError(self._loss.text)
                time.sleep(LOOK_SECONDS / 50)
        self._show(in_phase=False)

    @contextmanager
    def on_rank_0(self) -> Iterator[bool]:
        """A phase for work of the first alone: true there; at the end the others wait for it."""
        with self.long_work():
            yield self.is_rank_0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Where a process fails, hangs or is killed inside, all end, and it is said which one it was, and where."""
        in_step = False
        try:
            yield
            in_step = True
        except Interrupted as stopped:  # all processes at once
            in_step = True
            if self.is_rank_0:
                raise
            raise SilentError(str(stopped), stopped.exit_code) from stopped
        except KeyboardInterrupt:  # before training has begun
            if self.is_rank_0:
                raise
            raise SilentError("stopped", 128 + signal.SIGINT) from None
        except Exception as error:
            if self._store is None:
                raise
            with self._speaking:
                self._ending.set()
                raise self._explained(error) from error
        finally:
            self.leave(in_step)

    def leave(self, in_step: bool = True) -> None:
        """Part from the others, who do the same if `in_step`. Takes a few seconds at most, whatever they do."""
        self._ending.set()
        if self._store is None or not dist.is_initialized():
            return
        if in_step:
            self._show(left=True)
        # In a thread, since it may wait for a process that is no more.
        thread = threading.Thread(target=_destroy_groups, args=(in_step,), daemon=True)
        thread.start()
        thread.join(LEAVE_SECONDS)

    def watch(self) -> None:
        """From now on a thread shows that this process lives, and has the last word where the main thread can't.

        The main thread may be blocked for ever: behind a kernel that waits for a process that is no more.
        """
        threading.Thread(target=self._keep_watching, daemon=True).start()

    def _keep_watching(self) -> None:
        # Looks are counted, not the clock: that goes on while all processes are stopped.
        silent, still, before = [0.0] * self.size, 0.0, [self._shown] * self.size
        while self._loss is None:
            if self._ending.wait(LOOK_SECONDS):
                return
            try:
                self._show(beat=self._shown.beat + 1)
                shown = self._all_shown()
            except RuntimeError as error:
                self._loss = Loss(f"the connection to the other processes is lost ({error})", True)
                break
            silent = [
                0.0 if now.beat != then.beat else seconds + LOOK_SECONDS
                for seconds, now, then in zip(silent, shown, before, strict=True)
            ]
            is_moving = any(now.places != then.places or now.in_phase for now, then in zip(shown, before, strict=True))
            still = 0.0 if is_moving else still + LOOK_SECONDS
            before = shown
            self._loss = find_loss(self.rank, shown, silent, still, self._limit)
        if self._ending.wait(LAST_WORD_SECONDS if self._loss.elsewhere else END_SECONDS):
            return
        with self._speaking:
            if self._ending.is_set():
                return
            # The process ends without going back to the main thread: nothing that it would read from the device now
            # must reach a file.
            code = 1
            if self._loss.elsewhere:
                explained = self._explained(LostProcessError(self._loss.text))
                code = explained.exit_code
                if not isinstance(explained, SilentError):
                    sys.stderr.write(f"yoloyard: {explained}\n")
                    sys.stderr.flush()
            os._exit(code)

    def _show(self, **changes: Any) -> None:
        """Let the others see what has changed."""
        with self._showing:  # two threads call this
            self._shown = dataclasses.replace(self._shown, **changes)
            if self._store is not None:
                self._store.set(f"shown/{self.rank}", json.dumps(dataclasses.asdict(self._shown)))

    def _all_shown(self) -> list[Shown]:
        assert self._store is not None
        return [Shown(**json.loads(text)) for text in self._store.multi_get([f"shown/{r}" for r in range(self.size)])]

    def _explained(self, error: Exception) -> UserError:
        """Which process is to blame, as an error for the person at the keyboard; one process alone has it to say."""
        assert self._store is not None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):  # whoever started the processes now ends them: a moment yet
                signal.signal(number, signal.SIG_IGN)
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if line := user_line(error):
            text = f"{line}: {text}"
        text = memory_line(error) or text
        code = error.exit_code if isinstance(error, UserError) else 1
        try:
            self._show(failed=text)
            if not _is_of_communication(error):
                if self._store.add("speakers", 1) > 1:  # all found the same, or one thing led to another
                    return SilentError(text, code)
                if isinstance(error, UserError) and self.is_rank_0:
                    return error
                return _with_code(
                    UserError(f"process {self.rank} of {self.size}, at {self._shown.place}: {text}"), code
                )
            for _ in range(10):
                if self._store.add("speakers", 0):
                    return SilentError(text)
                time.sleep(REPORT_SECONDS / 10)
            if self._store.add("speakers", 1) > 1:
                return SilentError(text)
            shown = self._all_shown()
        except RuntimeError as lost:  # the store is gone, and with it the process that held it
            return UserError(f"the connection to the other processes is lost, at {self._shown.place} ({text}; {lost})")
        silent = [rank for rank, each in enumerate(shown) if not each.failed and not each.left]
        # Where it is certain who was killed, others may just be slow to report it.
        silent = [rank for rank in silent if process_identity.is_dead(shown[rank].identity)] or silent
        for rank in silent:
            process_identity.kill(shown[rank].identity)  # so that whoever started it need not wait
        lines = [f"process {rank}, last seen at {shown[rank].place}," for rank in silent]
        who = (
            f"{' and '.join(lines)} was killed or hangs" if lines else f"the processes can't reach each other ({text})"
        )
        advice = "nothing was saved yet"
        if self.run_folder is not None and whole_folder(self.run_folder / "checkpoints" / "last").exists():
            folder = shlex.quote(str(self.run_folder))
            advice = f"the last checkpoint is whole: go on with yoloyard train --resume {folder}"
        return UserError(f"{who}; the run ends at {self._shown.place}; {advice}")


def is_launched() -> bool:
    """Was this process started as one of several, by torchrun or what sets the same variables?"""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Which of the processes on this machine this one is."""
    return int(os.environ.get("LOCAL_RANK", "0")) if is_launched() else 0


def join_team(device: torch.device, hang_timeout: float = START_SECONDS) -> Team:
    """Meet the other processes of this run, as torchrun's environment names them.

    After the first steps a process may be late at an exchange by `hang_timeout` seconds.
    """
    if not is_launched():
        return Team()
    limit = datetime.timedelta(seconds=START_SECONDS)
    store, rank, size = next(iter(dist.rendezvous("env://")))
    own_store = dist.PrefixStore("yoloyard", store)
    own_store.set(f"shown/{rank}", json.dumps(dataclasses.asdict(Shown(process_identity.own_identity()))))
    if device.type == "cuda":
        # NCCL's own watchdog would end the process before it is said why. The host's exchanges notice first who is
        # missing, and `Team.watch` where the host is blocked. torchrun always sets 1, as if the user had.
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
        dist.init_process_group("nccl", store=store, rank=rank, world_size=size, timeout=2 * limit, device_id=device)
        host_group = dist.new_group(backend="gloo", timeout=limit)
    else:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
        host_group = None
    team = Team(rank, size, own_store, host_group)
    team.hang_timeout = hang_timeout
    team.watch()
    return team


def agreed_precision(precision: Precision, team: Team) -> Precision:
    """The simplest of all processes' precisions: what each of them can do."""
    return dataclasses.replace(precision, dtype=PRECISIONS[team.max(PRECISIONS.index(precision.dtype))])


def _destroy_groups(in_step: bool) -> None:
    """End the exchange of all groups; those of which a part may never come are aborted."""
    group = dist.group.WORLD
    try:
        if not in_step and dist.get_backend() == "nccl" and group is not None:
            group.abort()
        dist.destroy_process_group()
    except RuntimeError:
        if in_step:
            raise
        # Otherwise the others may be gone, and the run's own error is what is to be said.


def _is_of_communication(error: Exception) -> bool:
    """Did another process cause it? gloo raises plain RuntimeErrors, so their text tells."""
    if isinstance(error, dist.DistError | LostProcessError):
        return True
    marks = ("gloo", "Connection closed by peer", "Connection reset", "Timed out waiting")
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in marks)


def _with_code(error: UserError, code: int) -> UserError:
    error.exit_code = code
    return error
