"""Several hosts train together, and go on where processes, hosts and links fail."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import EPOCHS, Job
from network import Host, Network
from yoloyard.training.state.checkpoint import read_header

pytestmark = pytest.mark.slow

Record = Callable[[str, object], None]
SECONDS = 90.0  # for anything here


@pytest.fixture
def hosts(network: Network, tmp_path: Path) -> list[Host]:
    """One that is not preempted, and two that train."""
    return [network.add(tmp_path / name) for name in ("meeting", "first", "second")]


@contextlib.contextmanager
def going_on(job: Job, hosts: list[Host], record: Record) -> Iterator[None]:
    """After what happens inside, wait until training has gone on from a save, and record the seconds."""

    def starts() -> int:
        return sum("going on in epoch" in line for host in hosts for line in host.lines)

    began, before = time.monotonic(), starts()
    yield
    while starts() == before:
        assert time.monotonic() < began + SECONDS, "\n".join(hosts[1].lines)
        time.sleep(0.1)
    epochs = len(job.losses())
    while len(job.losses()) == epochs:
        assert time.monotonic() < began + SECONDS, "\n".join(hosts[1].lines)
        time.sleep(0.1)
    record("seconds", round(time.monotonic() - began, 1))


def words_of(job: Job, nodes: str, meeting: Host, project: Path | None = None) -> list[object]:
    place = ["--nodes", nodes, "--rendezvous", f"{meeting.address}:29400"]
    return [*job.words, "--project", project or job.project, *place]


def begin(job: Job, hosts: list[Host], words: list[object]) -> None:
    for host in hosts:
        host.start(*words)
    until = time.monotonic() + SECONDS
    while len(job.losses()) < 2:
        assert time.monotonic() < until, "\n".join(line for host in hosts for line in host.lines)
        time.sleep(0.1)


def test_training_goes_on_whatever_is_lost_and_comes_back(
    hosts: list[Host], job: Job, undisturbed: list[float], record_property: Record
) -> None:
    meeting, first, second = hosts
    meeting.start("rendezvous")
    meeting.wait_for("--rendezvous")
    words = words_of(job, "1:2", meeting)
    begin(job, [first, second], words)

    with going_on(job, hosts, record_property):  # a process is killed
        second.worker.kill()
    with going_on(job, hosts, record_property):  # a host dies
        second.kill()
    with going_on(job, hosts, record_property):  # it comes back
        second.start(*words)
    with going_on(job, hosts, record_property):  # the link of the other one is cut, which had rank 0
        first.cut()
    assert first.end(SECONDS) == 1
    first.wait_for("has lost the other hosts")
    first.connect()
    with going_on(job, hosts, record_property):  # the link is there again
        first.start(*words)
    with going_on(job, hosts, record_property):  # a host is preempted: what it has done is saved
        first.launcher.send_signal(signal.SIGTERM)
    assert first.end() == 128 + signal.SIGTERM

    job.slow.unlink()
    assert second.end(SECONDS) == 0
    assert list(job.project.iterdir()) == [job.project / "line"]
    assert job.losses() == pytest.approx(undisturbed, rel=1e-3)
    assert len(undisturbed) == EPOCHS

    # the same command after that is another run, and reads nothing of the last one
    for host in (first, second):
        host.start(*words)
    assert (first.end(SECONDS), second.end(SECONDS)) == (0, 0)
    assert job.losses("line-2") == pytest.approx(undisturbed, rel=1e-3)
