"""Several processes that train together: what the step must know of them, and how they wait, agree and fail.

In one process all of it does nothing. Process (rank) 0 is the first: it alone writes and talks. A process that doesn't
come to an exchange within `PATIENCE` ends the run, so whatever may take long, and not equally long, is done inside
`Team.phase` or `Team.first`, where the others wait as long as there are signs of life.
"""

from __future__ import annotations

import datetime
import inspect
import os
import shlex
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from yoloyard.errors import SilentError, UserError, own_line
from yoloyard.training.interrupt import Interrupted

PATIENCE = 40.0  # seconds that a process may be late at an exchange
REPORT_SECONDS = 3.0  # within which every process that lives has noticed a failure
LOOK_SECONDS = 1.0  # between two looks of those that wait

Value = TypeVar("Value")


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(values: Tensor) -> Tensor:
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


class Team:
    """The processes of a run. One process is a team of its own."""

    def __init__(self, rank: int = 0, size: int = 1, store: dist.Store | None = None, host_group: Any = None) -> None:
        self.rank, self.size = rank, size
        self._store, self._host_group = store, host_group
        self._place = "the beginning"
        self.run_folder: Path | None = None  # for advice
        self._phases = 0  # counted alike in all processes

    @property
    def is_first(self) -> bool:
        """Is this the process that writes and talks?"""
        return self.rank == 0

    def at(self, place: str) -> None:
        """Note for the others where this process is, as a person would say it."""
        self._place = place
        if self._store is not None:
            self._store.set(f"place/{self.rank}", place)

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._host_group)
        return int(numbers)

    def gather(self, value: Value) -> list[Value]:
        """All processes' values by rank, in the first; nothing in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, values, dst=0, group=self._host_group)
        return values or []

    def share(self, value: Value | None) -> Value:
        """The first's value, in all processes."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0, group=self._host_group)
        return values[0]  # type: ignore[return-value]

    @contextmanager
    def phase(self) -> Iterator[None]:
        """For work that may take long, and the processes unequally long: at its end each waits for all others.

        It waits as long as they show signs of life. Raises LostProcessError if one has failed or shows none.
        """
        self._phases += 1
        if self._store is None:
            yield
            return
        with self._signs_of_life():
            yield
        self._store.set(f"phase/{self._phases}/{self.rank}", "done")
        for rank in range(self.size):
            self._wait_for(rank, f"phase/{self._phases}/{rank}")

    @contextmanager
    def first(self) -> Iterator[bool]:
        """A phase for work of the first alone: true there; at the end the others wait for it."""
        with self.phase():
            yield self.is_first

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Where a process fails, hangs or is killed inside, all end, and it is said which one it was, and where."""
        try:
            yield
        except Interrupted as stopped:  # all processes at once
            if self.is_first:
                raise
            raise SilentError(str(stopped), stopped.exit_code) from stopped
        except KeyboardInterrupt:  # before training has begun
            if self.is_first:
                raise
            raise SilentError("stopped", 128 + signal.SIGINT) from None
        except Exception as error:
            if self._store is None:
                raise
            raise self._explained(error) from error

    @contextmanager
    def _signs_of_life(self) -> Iterator[None]:
        done = threading.Event()

        def beat() -> None:
            number = 0
            while not done.wait(LOOK_SECONDS):
                number += 1
                assert self._store is not None
                self._store.set(f"alive/{self.rank}", f"{self._phases} {number}")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _wait_for(self, rank: int, key: str) -> None:
        assert self._store is not None
        sign, seen = b"", time.monotonic()
        while not self._store.check([key]):
            if self._store.check([f"failed/{rank}"]):
                raise LostProcessError(f"process {rank} has failed")
            latest = self._store.get(f"alive/{rank}") if self._store.check([f"alive/{rank}"]) else b""
            if latest != sign:
                sign, seen = latest, time.monotonic()
            if time.monotonic() - seen > PATIENCE:
                raise LostProcessError(f"process {rank} shows no sign of life")
            time.sleep(LOOK_SECONDS / 50)

    def _explained(self, error: Exception) -> Exception:
        """Which process is to blame, as an error for the person at the keyboard."""
        assert self._store is not None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):  # whoever started the processes now ends them: a moment yet
                signal.signal(number, signal.SIG_IGN)
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if line := own_line(error):
            text = f"{line}: {text}"
        code = error.exit_code if isinstance(error, UserError) else 1
        try:
            self._store.set(f"failed/{self.rank}", text)
            if not _is_of_communication(error):
                if self._store.add("culprits", 1) > 1:  # all found the same, or one thing led to another
                    return SilentError(text, code)
                if isinstance(error, UserError) and self.is_first:
                    return error
                return _with_code(UserError(f"process {self.rank} of {self.size}, at {self._place}: {text}"), code)
            time.sleep(REPORT_SECONDS)
            silent = [rank for rank in range(self.size) if not self._store.check([f"failed/{rank}"])]
            talks = self.rank == min(set(range(self.size)) - set(silent))
            if not talks or (not silent and self._store.add("culprits", 0)):
                return SilentError(text)
            lines = [f"process {rank}, last seen at {self._last_place(rank)}," for rank in silent]
            for rank in silent:
                self._end(rank)
        except RuntimeError as lost:  # the store is gone, and with it the process that held it
            return UserError(f"the connection to the other processes is lost, at {self._place} ({text}; {lost})")
        who = (
            f"{' and '.join(lines)} was killed or hangs" if lines else f"the processes can't reach each other ({text})"
        )
        advice = "nothing was saved yet"
        if self.run_folder is not None and (self.run_folder / "checkpoints" / "last").exists():
            folder = shlex.quote(str(self.run_folder))
            advice = f"the last checkpoint is whole: go on with yoloyard train --resume {folder}"
        return UserError(f"{who}; the run ends at {self._place}; {advice}")

    def _last_place(self, rank: int) -> str:
        assert self._store is not None
        return self._store.get(f"place/{rank}").decode() if self._store.check([f"place/{rank}"]) else "the beginning"

    def _end(self, rank: int) -> None:
        """End a process of this machine that hangs, so that whoever started it need not wait."""
        assert self._store is not None
        host, number = self._store.get(f"who/{rank}").decode().rsplit(" ", 1)
        if host == socket.gethostname():
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)


def is_one_of_several() -> bool:
    """Was this process started as one of several, by torchrun or what sets the same variables?"""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Which of the processes on this machine this one is."""
    return int(os.environ.get("LOCAL_RANK", "0")) if is_one_of_several() else 0


def join_team(device: torch.device) -> Team:
    """Meet the other processes of this run, as torchrun's environment names them."""
    if not is_one_of_several():
        return Team()
    limit = datetime.timedelta(seconds=PATIENCE)
    store, rank, size = next(iter(dist.rendezvous("env://")))
    if device.type == "cuda":
        # The host's exchanges notice first who is missing, and can say so; NCCL's watchdog just ends the process.
        dist.init_process_group("nccl", store=store, rank=rank, world_size=size, timeout=2 * limit, device_id=device)
        host_group = dist.new_group(backend="gloo", timeout=limit)
    else:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
        host_group = None
    own_store = dist.PrefixStore("yoloyard", store)
    own_store.set(f"who/{rank}", f"{socket.gethostname()} {os.getpid()}")
    return Team(rank, size, own_store, host_group)


def leave_team() -> None:
    """After a run that ended well."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _is_of_communication(error: Exception) -> bool:
    """Did another process cause it? gloo raises plain RuntimeErrors, so their text tells."""
    if isinstance(error, dist.DistError | LostProcessError):
        return True
    marks = ("gloo", "Connection closed by peer", "Connection reset", "Timed out waiting")
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in marks)


def _with_code(error: UserError, code: int) -> UserError:
    error.exit_code = code
    return error
