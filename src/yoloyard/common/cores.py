"""The cores that this process may use, those that are idle, and the number of threads that follows from them.

What a process may use its affinity and control groups (cgroup v1 and v2) say. Each file of the system is read below
`root`, so that a test can give its own.

A step on a CPU is thousands of parallel regions, and at the end of each all threads wait for the slowest one. A thread
that shares its core with another program makes the step ten times as long. One thread fewer costs its own share only.
"""

import logging
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

log = logging.getLogger(__name__)

ROOT = Path("/")
LOOK_SECONDS = 0.5  # the shortest measurement: /proc counts in hundredths, and a passing burst should not decide
BUSY_CORES = 0.35  # other programs' use from which a thread is in their way; contended, they get half a core and more
INSTRUCTIONS = (
    "fma",
    "avx2",
    "avx512f",
    "avx512_bf16",
    "amx_bf16",
    "asimd",
    "bf16",
)  # that decide its speed
CHOSEN_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # environment variables by which a user decides

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Use:
    """How long cores have worked up to a moment, in seconds."""

    moment: float  # of a clock that never goes back
    own: float  # for this program: all of its processes
    limits: tuple[tuple[float, float], ...]  # cores that there are, and for how long any program has used them


def usable_cores(root: Path = ROOT) -> int:
    """How many whole cores this process may use, at least 1: by its affinity and the container's quota."""
    return max(1, int(cpus(root)["usable"]))


def cpus(root: Path) -> dict[str, Any]:
    """How many cores this process may run on, the container's quota of them, and the lesser of both."""
    count = len(allowed_cores(root)) or os.cpu_count()
    quota = min((cores for _, cores in quotas(root)), default=None)
    return {"allowed": count, "quota": quota, "usable": min(count or 1, quota or float("inf"))}


def processor(root: Path = ROOT) -> dict[str, Any]:
    """The processor's name, its frequency in MHz (0: the system doesn't say) and the sets of INSTRUCTIONS it has."""
    lines = [line.partition(":")[::2] for line in read(root / "proc/cpuinfo").splitlines()]
    said = {name.strip(): value.strip() for name, value in reversed(lines)}  # of the first core
    flags = {*said.get("flags", said.get("Features", "")).split()}
    most = read(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")  # kHz; the other one is that of now
    frequency = int(most) / 1000 if most.isdigit() else float(said.get("cpu MHz", 0))
    name = said.get("model name") or platform.processor() or platform.machine()
    return {"name": name, "megahertz": frequency, "instructions": [each for each in INSTRUCTIONS if each in flags]}


def allowed_cores(root: Path) -> list[int]:
    """The numbers of the cores that this process may run on; none where the system has no /proc."""
    status = read(root / "proc/self/status").splitlines()
    spans = next((line.partition(":")[2] for line in status if line.startswith("Cpus_allowed_list:")), "")
    online = set(_numbers(read(root / "sys/devices/system/cpu/online")))  # where cores can be plugged in, fewer
    return [number for number in _numbers(spans.strip()) if number in online or not online]


def quotas(root: Path) -> list[tuple[Path, float]]:
    """The control groups that limit this process's use of the CPU, each with the cores that it grants."""
    found = []
    for group in control_groups(root, "cpu"):
        quota, _, period = read(group / "cpu.max").partition(" ")  # v2
        if not quota:
            quota, period = read(group / "cpu.cfs_quota_us"), read(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():  # else "max" or -1: unlimited
            found.append((group, int(quota) / int(period)))
    return found


def control_groups(root: Path, controller: str) -> list[Path]:
    """The folders of this process's control group and of those above it, whose limits hold too."""
    mount = root / "sys/fs/cgroup"
    folders = []
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = mount / (controllers if (mount / controllers).exists() else controller)  # v2 names no controllers
        group = base / path.lstrip("/")
        folders += [each for each in (group, *group.parents) if each == base or base in each.parents]
    return folders


def read(path: Path) -> str:
    """A file's text without the space around; empty if it isn't there or may not be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


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
    """The threads of torch and OpenCV while a command works: on a CPU as many as cores are idle, restored at the end.

    On other devices they are this process's share of the usable cores. A number that the user has set, by an
    environment variable or `torch.set_num_threads`, stays. Several processes on one host share its cores evenly.
    Measuring begins when this is made.
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
        measures = device_type == "cpu" and not self._is_chosen
        self._since = self._recent = measure(root, self._first) if measures else None
        self._has_looked = False

    @property
    def number(self) -> int:
        """Threads of torch."""
        return int(self._torch.get_num_threads())

    def begin_to_measure(self) -> None:
        """Measure from now on, if the time until the next choice is long enough."""
        if self._recent is not None:
            self._recent = measure(self._root, self._first)

    def choose(self, agree: Callable[[int], int] = int, wait: bool = False, every: float = LOOK_SECONDS) -> None:
        """Set the number of threads by what has been measured, and report a change in a line.

        `agree` makes one number of those of all processes. Before the first choice, `wait` sleeps until the measurement
        is long enough, half a second at most. After that, nothing changes within `every` seconds.
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
        """The idle cores since `begin_to_measure`, or the last choice where that is too short; None: not known."""
        if self._since is None or self._recent is None:
            return None
        seconds = time.monotonic() - self._since.moment
        if not self._has_looked and wait:
            time.sleep(max(0.0, LOOK_SECONDS - seconds))
        elif seconds < (every if self._has_looked else LOOK_SECONDS):
            return None
        now, since, recent = measure(self._root, self._first), self._since, self._recent
        self._since = self._recent = now
        if now is None or len(now.limits) != len(since.limits):  # a group was given a limit meanwhile
            return None
        self._has_looked = True
        is_enough = now.moment - recent.moment >= LOOK_SECONDS
        return idle_cores(recent if is_enough else since, now)

    def _set(self, torch_threads: int, cv2_threads: int) -> None:
        self._torch.set_num_threads(torch_threads)
        self._cv2.setNumThreads(cv2_threads)


def map_in_threads(
    do: Callable[[Item], Result], items: Sequence[Item], threads: int | None, at_once: int = 200
) -> list[Result]:
    """What `do` makes of each item, in their order; each of the threads takes `at_once` items at a time.

    For many small files: a pool's own work for each task is more than that of a file.
    """
    shares = [items[start : start + at_once] for start in range(0, len(items), at_once)]
    with ThreadPoolExecutor(threads) as pool:
        return [each for results in pool.map(lambda share: [do(item) for item in share], shares) for each in results]


def _numbers(spans: str) -> list[int]:
    """`0-2,5` as [0, 1, 2, 5]."""
    ends = [span.split("-") for span in spans.split(",") if span]
    return [number for span in ends for number in range(int(span[0]), int(span[-1]) + 1)]


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
