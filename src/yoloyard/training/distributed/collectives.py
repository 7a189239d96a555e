"""What the processes of a run exchange: sums on the device, numbers and objects through the host."""

import dataclasses
import datetime
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from yoloyard.common.device import PRECISIONS, Precision
from yoloyard.common.errors import SilentError, UsageError
from yoloyard.training.distributed.cluster import LAUNCH
from yoloyard.training.distributed.hosts import check_interface, meet, nccl_line
from yoloyard.training.distributed.watch import FIRST_PLACES, START_SECONDS, Watch, starts_again
from yoloyard.training.interrupt import Interrupted

LEAVE_SECONDS = 5.0  # that parting may take

Value = TypeVar("Value")


class Team:
    """The processes of a run. `Team()` is one process alone, which exchanges nothing and waits for nobody."""

    def __init__(self, watch: Watch | None = None) -> None:
        self.watch = watch or Watch()
        self.rank, self.size = self.watch.rank, self.watch.size
        self.is_rank_0 = self.rank == 0  # which writes and talks
        self.store: Any = None  # of torch, for `connect`
        self.host_group: Any = None

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """`tensor`, which becomes its sum over all processes, in place; the host does not wait for the device."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def even_out(self, tensors: list[Tensor]) -> None:
        """Give `tensors`, of one device, their mean over all processes, in place."""
        if tensors:
            means = self.all_reduce(torch.cat([tensor.flatten() for tensor in tensors])) / self.size
            parts = means.split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])

    def reached(self, place: str) -> None:
        """Show the others where this process is, in words for the user."""
        watch = self.watch
        watch.show(place=place, places=watch.shown.places + 1)
        if self.size > 1 and watch.shown.places == FIRST_PLACES:
            watch.limit = watch.hang_timeout
            dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=watch.limit), self.host_group)

    def max(self, number: int) -> int:
        """The largest of all processes' numbers."""
        numbers = torch.tensor(number)
        if self.size > 1:
            dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.host_group)
        return int(numbers)

    def min(self, number: int) -> int:
        """The smallest of all processes' numbers."""
        return -self.max(-number)

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, by rank, on rank 0; an empty list on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_rank_0 else None
        dist.gather_object(value, values, dst=0, group=self.host_group)
        return values or []

    def broadcast(self, value: Value | None) -> Value:
        """The value of rank 0, in all processes."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0, group=self.host_group)
        return values[0]  # type: ignore[return-value]

    @contextmanager
    def on_rank_0(self) -> Iterator[bool]:
        """Long work of rank 0 alone: gives true there; at the end the other processes wait for it."""
        with self.watch.long_work():
            yield self.is_rank_0

    def first_of_host_first(self, work: Callable[[], Value]) -> Value:
        """What `work` gives in each process; the first one of each host does it before the others, which find it done.

        For files in a host's cache.
        """
        for is_first in (True, False):
            with self.watch.long_work():
                if self.watch.is_first_of_host is is_first:
                    value = work()
        return value

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Where a process fails, hangs or is killed inside, all end, and one says which process it was, and where."""
        in_order = False
        try:
            yield
            in_order = True
        except (Interrupted, KeyboardInterrupt) as stopped:
            in_order = isinstance(stopped, Interrupted)  # which stops all processes at the same step
            if self.is_rank_0:
                raise
            raise SilentError("stopped", getattr(stopped, "exit_code", 128 + signal.SIGINT)) from stopped
        except Exception as error:
            if self.size == 1:
                raise
            raise self.watch.explained(error) from error
        finally:
            self.leave(in_order)

    def leave(self, in_order: bool = True) -> None:
        """Part from the other processes, which do so too if `in_order`. Takes a few seconds at most, in any case."""
        self.watch.ending.set()
        if in_order:
            self.watch.show(left=True)
        if self.size > 1 and dist.is_initialized():
            thread = threading.Thread(target=_destroy_groups, args=(in_order,), daemon=True)
            thread.start()  # it may wait for a process that has ended
            thread.join(LEAVE_SECONDS)


def meet_team(hang_timeout: float = START_SECONDS) -> Team:
    """The other processes of this run, seen in the store alone: nothing can be sent to them yet.

    After the first steps one may be late by `hang_timeout` seconds. Raises UserError if the store can't be reached,
    UsageError where processes that start again would fail.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team()
    if starts_again() and LAUNCH not in os.environ and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise UsageError(
            "torchrun --max-restarts: processes that start again would read what the last ones left in its store; set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on each host, or start the run by yoloyard train --nodes"
        )
    store, rank, size = meet()
    own = store.clone()  # type: ignore[attr-defined]  # a connection of its own: torch blocks the other while it waits
    team = Team(Watch(rank, size, dist.PrefixStore("yoloyard", own), hang_timeout))
    team.store = store
    threading.Thread(target=team.watch.keep_watching, daemon=True).start()
    return team


def connect(team: Team, device: torch.device) -> None:
    """Connect the processes of `team` with each other. Raises UserError where NCCL finds no way."""
    if team.size == 1:
        return
    limit = datetime.timedelta(seconds=START_SECONDS)
    options: dict[str, Any] = {"store": team.store, "rank": team.rank, "world_size": team.size}
    if device.type == "cuda":
        check_interface("NCCL_SOCKET_IFNAME")
        # NCCL's own watchdog would end the process before it is said why. The host's exchanges notice first who is
        # missing, and the `Watch` where the host is blocked. torchrun always sets 1, as if the user had.
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
        try:
            dist.init_process_group("nccl", timeout=2 * limit, device_id=device, **options)
        except dist.DistBackendError as error:
            raise nccl_line(error) from error
        team.host_group = dist.new_group(backend="gloo", timeout=limit)
    else:
        dist.init_process_group("gloo", timeout=limit, **options)


def agreed_precision(precision: Precision, team: Team) -> Precision:
    """The simplest of all processes' precisions, which each of them can compute in."""
    return dataclasses.replace(precision, dtype=PRECISIONS[team.max(PRECISIONS.index(precision.dtype))])


def _destroy_groups(in_order: bool) -> None:
    # Where other processes may be missing, NCCL's exchange is aborted first, and an error of parting is not told.
    with nullcontext() if in_order else suppress(RuntimeError):
        if not in_order and dist.get_backend() == "nccl":
            dist.group.WORLD.abort()  # type: ignore[union-attr]
        dist.destroy_process_group()
