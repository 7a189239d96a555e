"""The cores that this process may use, those that are idle, and the number of threads that follows from them.

A step on a CPU is thousands of parallel regions, and at the end of each all threads wait for the slowest one. A thread
that shares its core with another program makes the step ten times as long. One thread fewer costs its own share only.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from yoloyard.common.cgroups import allowed_cores, cpus, quotas, read

log = logging.getLogger(__name__)

ROOT = Path("/")
LOOK_SECONDS = 0.5  # the shortest measurement: /proc counts in hundredths, and a passing burst should not decide
BUSY_CORES = 0.35  # other programs' use from which a thread is in their way; contended, they get half a core and more
CHOSEN_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # environment variables by which a user decides


@dataclass(frozen=True)
class Use:
    """How long cores have worked up to a moment, in seconds."""

    moment: float  # of a clock that never goes back
    own: float  # for this program: all of its processes
    limits: tuple[tuple[float, float], ...]  # cores that there are, and for how long any program has used them


def usable_cores(root: Path = ROOT) -> int:
    """How many whole cores this process may use, at least 1: by its affinity and the container's quota."""
    return max(1, int(cpus(root)["usable"]))


def measure(root: Path, first: int) -> Use | None:
    """The use up to now; `first` is the number of the program's first process. None: the system doesn't say (no /proc).

    Limits are the cores that may be used, and the quota of each control group.
    """
    busy = {}
    for line in read(root / "proc/stat").splitlines():  # psutil would not say which core it is
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit():
            user, nice, system, _idle, _waiting, irq, softirq = map(int, fields[:7])
            busy[int(name[3:])] = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    if not busy:
        return None
    allowed = allowed_cores(root)
    # A container may number the cores of its /proc/stat from 0.
    counted = allowed if set(allowed) <= busy.keys() else list(busy)
    limits = [(float(len(counted)), sum(busy[core] for core in counted))]
    limits += [(quota, _group_seconds(group)) for group, quota in quotas(root)]
    return Use(time.monotonic(), _program_seconds(first), tuple(limits))


def idle_cores(earlier: Use, later: Use) -> float:
    """How many cores other programs have left between two moments; what this program used itself counts as idle."""
    seconds = later.moment - earlier.moment
    own = (later.own - earlier.own) / seconds
    pairs = zip(earlier.limits, later.limits, strict=True)
    return min(cores - max(0.0, (after - before) / seconds - own) for (_, before), (cores, after) in pairs)


class Threads:
    """The threads of torch and OpenCV while a command works: fitted to the idle cores on a CPU, put back at the end.

    Elsewhere they are this process's share of the usable cores. What the user has chosen, by an environment variable or
    `torch.set_num_threads`, stays. Several processes on one host share its cores evenly. Measuring begins here.
    """

    def __init__(self, device_type: str, root: Path = ROOT) -> None:
        import cv2
        import torch

        self._root = root
        self._torch, self._cv2 = torch, cv2
        self._before = (torch.get_num_threads(), cv2.getNumThreads())
        self._processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        # Processes that train together have the one that started them in common.
        self._first = os.getppid() if self._processes > 1 else os.getpid()
        self._most = min(self._before[0], usable_cores(root))
        self._is_chosen = any(map(os.environ.get, CHOSEN_BY)) or not _is_default(self._before[0], root)
        self._measures = device_type == "cpu" and not self._is_chosen
        self._since = self._recent = measure(root, self._first) if self._measures else None
        self._has_looked = False

    @property
    def number(self) -> int:
        """Threads of torch."""
        return int(self._torch.get_num_threads())

    def begin_to_measure(self) -> None:
        """Measure from now on, if there is enough time until the next choice."""
        if self._measures:
            self._recent = measure(self._root, self._first)

    def choose(
        self, agree: Callable[[int], int] = lambda number: number, wait: bool = False, every: float = LOOK_SECONDS
    ) -> None:
        """Set the number of threads by what has been measured, and say a change in a line.

        `agree` makes one number of those of all processes. Before the first choice, `wait` sleeps until there is enough
        to go by, half a second at most. After that, nothing changes within `every` seconds.
        """
        idle, number = self._idle(wait, every), self.number
        if not self._is_chosen and (idle is not None or not self._has_looked):
            whole = self._most if idle is None else min(self._most, int(idle + BUSY_CORES))
            number = max(1, whole // self._processes)
        number = agree(number)
        if self._is_chosen or number == self.number:
            return
        share = f", shared by {self._processes} processes" if self._processes > 1 else ""
        seen = "" if idle is None else f", {idle:.1f} of them idle"
        log.info(
            f"threads: {number} instead of {self.number}, for {usable_cores(self._root)} usable cores{seen}{share} "
            "(OMP_NUM_THREADS=N sets them)"
        )
        self._set(number, min(number, self._before[1]))

    def restore(self) -> None:
        """Set the numbers that there were before."""
        if (self.number, self._cv2.getNumThreads()) != self._before:
            self._set(*self._before)

    def _idle(self, wait: bool, every: float) -> float | None:
        """The idle cores since the last choice, of late if that is long enough; None: not known, or not yet."""
        if self._since is None or self._recent is None:
            return None
        seconds = time.monotonic() - self._since.moment
        if not self._has_looked and wait:
            time.sleep(max(0.0, LOOK_SECONDS - seconds))
        elif seconds < (every if self._has_looked else LOOK_SECONDS):
            return None
        now = measure(self._root, self._first)
        if now is None or len(now.limits) != len(self._since.limits):  # a group was given a limit meanwhile
            self._since = self._recent = now
            return None
        is_enough = now.moment - self._recent.moment >= LOOK_SECONDS
        idle = idle_cores(self._recent if is_enough else self._since, now)
        self._since = self._recent = now
        self._has_looked = True
        return idle

    def _set(self, torch_threads: int, cv2_threads: int) -> None:
        self._torch.set_num_threads(torch_threads)
        self._cv2.setNumThreads(cv2_threads)


def _is_default(number: int, root: Path) -> bool:
    """May torch have begun with this number of threads by itself? It takes the cores, or as many as have siblings."""
    allowed = allowed_cores(root)
    cores = root / "sys/devices/system/cpu"
    siblings = {read(cores / f"cpu{core}/topology/thread_siblings_list") for core in allowed}
    return not allowed or number in (len(allowed), len(siblings))  # none where the system doesn't say


def _group_seconds(group: Path) -> float:
    """How long a control group has used cores, in seconds; 0 where it doesn't say."""
    for name, value in (line.split() for line in read(group / "cpu.stat").splitlines()):
        if name == "usage_usec":  # v2
            return int(value) / 1e6
    return int(read(group / "cpuacct.usage") or 0) / 1e9  # v1


def _program_seconds(first: int) -> float:
    """How long a process, all that it has started, and those of them that have ended have used cores, in seconds."""
    seconds = 0.0
    with suppress(psutil.NoSuchProcess):  # of another container
        process = psutil.Process(first)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # it has just ended
                times = each.cpu_times()
                seconds += times.user + times.system + times.children_user + times.children_system
    return seconds
