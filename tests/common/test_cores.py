"""Cores that may be used and those that are idle, on made-up machines: /proc and /sys as files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import psutil
import pytest
import torch

from yoloyard.common import cores
from yoloyard.common.cores import Threads, idle_cores, measure, usable_cores

TICKS = os.sysconf("SC_CLK_TCK")  # a second's
ME, STARTER = os.getpid(), os.getppid()


class Host:
    """A host of four cores, with a clock; it does nothing at first."""

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, 0.0
        self.busy = dict.fromkeys(range(4), 0.0)  # seconds by core
        self.processes = {ME: (STARTER, 0.0, 0.0)}  # parent, seconds, seconds of its ended children
        self.write("proc/self/status", "Name:\tpython\nCpus_allowed_list:\t0-3\n")
        self.write("proc/self/cgroup", "0::/\n")
        for core in range(4):
            self.write(f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list", str(core))
        self.update()

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def work(self, seconds: float, others: dict[int, float], own: dict[int, float] | None = None) -> None:
        """Let `seconds` pass; `others` seconds by core are used by other programs, `own` ones by process and core 0."""
        self.now += seconds
        for core, used in others.items():
            self.busy[core] += used
        for number, used in (own or {}).items():
            parent, mine, children = self.processes.get(number, (ME, 0.0, 0.0))
            self.processes[number] = (parent, mine + used, children)
            self.busy[0] += used
        self.update()

    def update(self) -> None:
        lines = [
            f"cpu{core} {used * TICKS / 2:.0f} 0 {used * TICKS / 2:.0f} 9 9 0 0 7" for core, used in self.busy.items()
        ]
        self.write("proc/stat", "cpu  1 2 3 4 5 6 7 8 0 0\n" + "\n".join(lines) + "\nintr 1 2\nctxt 5\nbtime 9\n")
        for number, (parent, mine, children) in self.processes.items():
            name = "(a) b) 7"  # any text may be a name
            numbers = f"{mine * TICKS:.0f} 0 {children * TICKS:.0f} 0" + " 20 0 1" * 9
            self.write(f"proc/{number}/stat", f"{number} ({name}) S {parent} 1 1 0 -1 4 1 2 3 4 {numbers}\n")

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    for name in (*cores.CHOSEN_BY, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    host = Host(tmp_path)
    monkeypatch.setattr(cores, "time", host)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(4)
    cv2.setNumThreads(4)
    yield host
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def idle_after(host: Host, seconds: float, others: dict[int, float], own: dict[int, float] | None = None) -> float:
    before = measure(host.root, ME)
    host.work(seconds, others, own)
    after = measure(host.root, ME)
    assert before is not None
    assert after is not None
    return idle_cores(before, after)


def threads_of(host: Host, device: str = "cpu") -> Threads:
    return Threads(device, host.root)


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({}, 4),
        ({"proc/self/status": "Cpus_allowed_list:\t0,2-3\n"}, 3),
        ({"proc/self/status": "Cpus_allowed_list:\t0-127\n", "sys/devices/system/cpu/online": "0-3\n"}, 4),
        ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 4),
        ({"sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/pod/main\n", "sys/fs/cgroup/pod/cpu.max": "100000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/ab\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            4,
        ),
    ],
)
def test_usable_cores_follow_affinity_and_quota(host: Host, files: dict[str, str], usable: int) -> None:
    for path, text in files.items():
        host.write(path, text)
    assert usable_cores(host.root) == usable


def test_usable_cores_without_proc(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == os.cpu_count()
    assert measure(tmp_path, ME) is None


@pytest.mark.parametrize(
    ("others", "idle"),
    [({}, 4), ({1: 2.0}, 3), ({1: 0.5, 2: 0.5}, 3.5), ({0: 2.0, 1: 2.0, 2: 2.0, 3: 2.0}, 0)],
)
def test_cores_are_idle_that_other_programs_leave(host: Host, others: dict[int, float], idle: float) -> None:
    assert idle_after(host, 2.0, others) == pytest.approx(idle, abs=0.01)


def test_own_processes_do_not_count(host: Host) -> None:
    worker, workers_child, stranger = 10**8, 10**8 + 1, 10**8 + 2
    host.processes |= {worker: (ME, 1.0, 0.0), workers_child: (worker, 0.0, 0.0), stranger: (1, 5.0, 0.0)}
    host.update()
    assert idle_after(host, 2.0, {}, {ME: 1.0, worker: 0.5, workers_child: 0.25}) == pytest.approx(4, abs=0.01)
    assert idle_after(host, 2.0, {}, {stranger: 1.0}) == pytest.approx(3.5, abs=0.01)


def test_a_process_that_has_ended_counts_where_its_parent_keeps_it(host: Host) -> None:
    worker = 10**8
    host.processes[worker] = (ME, 3.0, 0.0)
    host.update()
    before = measure(host.root, ME)
    del host.processes[worker]
    (host.root / f"proc/{worker}/stat").unlink()
    host.processes[ME] = (STARTER, 0.0, 4.0)
    host.work(2.0, {0: 1.0})
    after = measure(host.root, ME)
    assert before is not None
    assert after is not None
    assert idle_cores(before, after) == pytest.approx(4, abs=0.01)


@pytest.mark.parametrize(
    ("group", "quota", "used"),
    [
        ("0::/\n", {"cpu.max": "200000 100000"}, ("cpu.stat", "usage_usec {:.0f}\nuser_usec 5\n", 1e6)),
        (
            "3:cpu,cpuacct:/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            ("cpu,cpuacct/cpuacct.usage", "{:.0f}\n", 1e9),
        ),
    ],
    ids=["v2", "v1"],
)
def test_a_quota_is_shared_with_others_of_the_container(
    host: Host, group: str, quota: dict[str, str], used: tuple[str, str, float]
) -> None:
    name, text, unit = used
    host.write("proc/self/cgroup", group)
    for path, value in quota.items():
        host.write(f"sys/fs/cgroup/{path}", value)
    assert idle_after(host, 2.0, {1: 0.5}) == pytest.approx(2)  # there is nothing about the group's use
    host.write(f"sys/fs/cgroup/{name}", text.format(10 * unit))
    before = measure(host.root, ME)
    host.write(f"sys/fs/cgroup/{name}", text.format(13 * unit))
    host.work(2.0, {1: 2.0}, {ME: 1.0})
    after = measure(host.root, ME)
    assert before is not None
    assert after is not None
    assert idle_cores(before, after) == pytest.approx(1, abs=0.01)


def test_only_cores_that_may_be_used_are_looked_at(host: Host) -> None:
    host.write("proc/self/status", "Cpus_allowed_list:\t0-1\n")
    assert idle_after(host, 2.0, {2: 2.0, 3: 2.0}) == pytest.approx(2, abs=0.01)
    host.write("proc/self/status", "Cpus_allowed_list:\t8-11\n")  # numbers of the host, in a container that has its own
    assert idle_after(host, 2.0, {2: 2.0}) == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize(
    ("others", "number"),
    [({}, 4), ({3: 0.3}, 4), ({3: 0.6}, 3), ({3: 1.0}, 3), ({3: 1.0, 2: 1.0}, 2), (dict.fromkeys(range(4), 1.0), 1)],
)
def test_threads_for_the_idle_cores(host: Host, others: dict[int, float], number: int, said: list[str]) -> None:
    threads = threads_of(host)
    host.work(1.0, others)
    threads.choose()
    assert torch.get_num_threads() == threads.number == cv2.getNumThreads() == number
    assert len(said) == (number != 4)
    threads.restore()
    assert torch.get_num_threads() == cv2.getNumThreads() == 4


def test_a_change_is_said_once_and_others_may_go_again(host: Host, said: list[str]) -> None:
    threads = threads_of(host)
    for others, number in (({1: 1.0}, 3), ({1: 1.0}, 3), ({}, 4), ({}, 4)):
        host.work(1.0, others)
        threads.choose()
        assert threads.number == number
    assert said == [
        "threads: 3 instead of 4, for 4 usable cores, 3.0 of them idle (OMP_NUM_THREADS=N sets them)",
        "threads: 4 instead of 3, for 4 usable cores, 4.0 of them idle (OMP_NUM_THREADS=N sets them)",
    ]


def test_the_first_choice_may_wait_and_later_ones_do_not(host: Host) -> None:
    threads = threads_of(host)
    host.work(0.1, {1: 0.25})
    threads.choose()
    assert threads.number == 4  # a tenth of a second is too short to go by
    threads.choose(wait=True)
    assert host.now == pytest.approx(cores.LOOK_SECONDS)
    assert threads.number == 3
    host.work(0.1, {})
    threads.choose(wait=True)
    assert host.now == pytest.approx(cores.LOOK_SECONDS + 0.1)
    assert threads.number == 3


def test_what_was_of_late_counts_if_it_is_long_enough(host: Host) -> None:
    threads = threads_of(host)
    host.work(100.0, {1: 100.0, 2: 100.0})
    threads.begin_to_measure()
    host.work(1.0, {1: 1.0})
    threads.choose()
    assert threads.number == 3
    host.work(1.0, {1: 1.0, 2: 1.0})
    threads.begin_to_measure()
    host.work(0.01, {})
    threads.choose()
    assert threads.number == 2


def test_nothing_changes_between_two_choices_that_are_too_near(host: Host) -> None:
    threads = threads_of(host)
    host.work(1.0, {1: 1.0})
    threads.choose(every=5.0)
    host.work(4.0, {})
    threads.choose(every=5.0)
    assert threads.number == 3
    host.work(1.0, {})
    threads.choose(every=5.0)
    assert threads.number == 4


@pytest.mark.parametrize("name", cores.CHOSEN_BY)
def test_a_variable_of_the_user_decides(host: Host, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "4")
    threads = threads_of(host)
    host.work(1.0, {1: 1.0, 2: 1.0})
    threads.choose(wait=True)
    assert threads.number == 4


def test_a_number_that_was_set_from_python_stays(host: Host) -> None:
    torch.set_num_threads(2)
    threads = threads_of(host)
    host.work(1.0, dict.fromkeys(range(4), 1.0))
    threads.choose(wait=True)
    assert threads.number == 2


def test_whole_cores_are_a_default_of_torch_too(host: Host) -> None:
    for core in range(4):
        host.write(f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list", f"{core % 2},{core % 2 + 2}")
    torch.set_num_threads(2)
    threads = threads_of(host)
    host.work(1.0, {1: 1.0})
    threads.choose()
    assert threads.number == 2  # three idle ones are enough for both
    host.work(1.0, {1: 1.0, 2: 1.0, 3: 1.0})
    threads.choose()
    assert threads.number == 1


def test_processes_on_one_host_share_its_idle_cores(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    sibling = 10**8
    host.processes |= {STARTER: (1, 0.0, 0.0), sibling: (STARTER, 0.0, 0.0)}
    host.update()
    threads = threads_of(host)
    host.work(1.0, {}, {ME: 1.0, sibling: 1.0})
    threads.choose()
    assert threads.number == 2
    host.work(1.0, {1: 1.0}, {sibling: 1.0})
    threads.choose()
    assert threads.number == 1


def test_processes_agree(host: Host) -> None:
    threads = threads_of(host)
    host.work(1.0, {})
    threads.choose(lambda number: min(number, 2))
    assert threads.number == 2


def test_a_quota_bounds_the_threads_beside_an_accelerator(host: Host) -> None:
    host.write("sys/fs/cgroup/cpu.max", "200000 100000")
    threads = threads_of(host, device="cuda")
    host.work(1.0, {1: 1.0, 2: 1.0})
    threads.choose(wait=True)
    assert host.now == 1.0
    assert threads.number == 2


def test_without_proc_all_usable_cores(tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    threads = Threads("cpu", tmp_path / "nothing")
    threads.choose(wait=True)
    assert threads.number == 4


def test_opencv_gets_no_more_threads_than_it_had(host: Host) -> None:
    cv2.setNumThreads(1)
    threads = threads_of(host)
    host.work(1.0, {1: 1.0})
    threads.choose()
    assert (threads.number, cv2.getNumThreads()) == (3, 1)
