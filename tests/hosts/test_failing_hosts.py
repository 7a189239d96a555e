"""Several hosts train together, and go on where processes, hosts and links fail."""

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from host_job import EPOCHS, Job
from host_network import Host, Network

pytestmark = pytest.mark.slow

Record = Callable[[float], None]
SECONDS = 90.0  # for anything here


@pytest.fixture
def hosts(network: Network, tmp_path: Path) -> list[Host]:
    """One that is not preempted, and two that train."""
    return [network.add(tmp_path / name) for name in ("meeting", "first", "second")]


@pytest.fixture
def record(capsys: pytest.CaptureFixture[str]) -> Record:
    """Prints how long something took, since a moment in `time.monotonic`."""

    def say(seconds: float) -> None:
        with capsys.disabled():
            print(f" {seconds:.1f} s", end="", flush=True)

    return say


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
    record(time.monotonic() - began)


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
    hosts: list[Host], job: Job, undisturbed: list[float], data: Path, tmp_path: Path, record: Record
) -> None:
    meeting, first, second = hosts
    meeting.start("rendezvous")
    meeting.wait_for("--rendezvous")
    words = words_of(job, "1:2", meeting)
    begin(job, [first, second], words)

    with going_on(job, hosts, record):  # a process is killed
        second.worker.kill()
    with going_on(job, hosts, record):  # a host dies
        second.kill()
    with going_on(job, hosts, record):  # it comes back
        second.start(*words)
    with going_on(job, hosts, record):  # the link of the other one is cut, which had rank 0
        first.cut()
    assert first.end(SECONDS) == 1
    first.wait_for("has lost the other hosts")
    first.start(*words, "--lrf", 0.5)  # a host that is not like the others ends alone
    assert first.end(SECONDS) == 2
    first.wait_for("--lrf is not set on worker")
    other = shutil.copytree(data.parent, tmp_path / "other")
    other.joinpath("labels/train/0.txt").write_text("0 0.5 0.5 0.5 0.5")
    with going_on(job, hosts, record):  # nor does one with other data end the run, though it gets rank 0
        first.start(*[other / data.name if word == data else word for word in words])
        assert first.end(SECONDS) == 1
        first.wait_for("is not the one that the run began with")
    with going_on(job, hosts, record):  # the link is there again
        first.start(*words)
    with going_on(job, hosts, record):  # a host is preempted: what it has done is saved
        first.launcher.send_signal(signal.SIGTERM)
    assert first.end() == 128 + signal.SIGTERM

    job.slow.unlink()
    assert second.end(SECONDS) == 0
    assert list(job.project.iterdir()) == [job.project / "line"]
    assert job.losses() == pytest.approx(undisturbed, rel=2e-2)
    assert len(undisturbed) == EPOCHS

    # the same command after that is another run, and reads nothing of the last one
    for host in (first, second):
        host.start(*words)
    assert (first.end(SECONDS), second.end(SECONDS)) == (0, 0)
    assert job.losses("line-2") == pytest.approx(undisturbed, rel=2e-2)


def test_without_the_host_of_the_rendezvous_the_others_end_and_say_so(
    hosts: list[Host], job: Job, record: Record
) -> None:
    _, first, second = hosts
    begin(job, [first, second], words_of(job, "1:2", first))
    began = time.monotonic()
    first.kill()
    assert second.end(SECONDS) == 1
    record(time.monotonic() - began)
    second.wait_for(f"has lost the other hosts: nothing answers at --rendezvous {first.address}:29400")


def test_hosts_that_share_no_disk(hosts: list[Host], job: Job, undisturbed: list[float], record: Record) -> None:
    meeting, first, second = hosts
    meeting.start("rendezvous")
    meeting.wait_for("--rendezvous")
    alone = Job(job.words, second.folder / "runs", job.slow)
    # the second host begins alone; it keeps rank 0, as the run is there, though the other's address is a lower one
    begin(alone, [second], words_of(job, "1:2", meeting, Path("runs")))
    with going_on(alone, hosts, record):
        first.start(*words_of(job, "1:2", meeting, Path("runs")))
    with going_on(alone, hosts, record):
        first.kill()
    assert alone.losses() == pytest.approx(undisturbed[: len(alone.losses())], rel=2e-2)
    with going_on(alone, hosts, record):
        first.start(*words_of(job, "1:2", meeting, Path("runs")))
    second.kill()
    assert first.end(SECONDS) == 1
    first.wait_for(
        f"the run was on worker ({second.address}), which is not there, and worker ({first.address}) has no run"
    )
    assert not (first.folder / "runs").exists()


def test_a_host_without_the_run_folder_fetches_it_from_the_backup(
    hosts: list[Host], job: Job, undisturbed: list[float], tmp_path: Path, record: Record
) -> None:
    meeting, first, second = hosts
    meeting.start("rendezvous")
    meeting.wait_for("--rendezvous")
    words = [*words_of(job, "1:2", meeting, Path("runs")), "--backup", f"file://{tmp_path}/copies"]
    here, there = (Job(job.words, host.folder / "runs", job.slow) for host in (first, second))
    begin(there, [second], words)
    with going_on(there, hosts, record):
        first.start(*words)
    with going_on(here, hosts, record):
        second.kill()
    assert here.losses() == pytest.approx(undisturbed[: len(here.losses())], rel=2e-2)


def test_a_host_without_the_data_says_so_before_the_first_step(hosts: list[Host], job: Job, data: Path) -> None:
    _, first, second = hosts
    first.start(*words_of(job, "2", first))
    elsewhere = Path("elsewhere/data.yaml")
    second.start(*[elsewhere if word == data else word for word in words_of(job, "2", first)])
    assert (first.end(SECONDS), second.end(SECONDS)) == (2, 2)
    said = f"on worker ({second.address}): there is no file"
    first.wait_for(said)
    second.wait_for(f"the run was ended on worker ({first.address})")
    assert not job.project.exists()


@pytest.mark.parametrize("nodes", ["1:2", "2"])
def test_an_error_in_a_users_file_ends_the_run_on_all_hosts(hosts: list[Host], job: Job, nodes: str) -> None:
    _, first, second = hosts
    words = words_of(job, nodes, first)
    first.start(*words)
    second.start(*words, ACTION="raise ValueError('broken belt')")
    assert (first.end(SECONDS), second.end(SECONDS)) == (1, 1)
    second.wait_for("ValueError: broken belt")
    first.wait_for(f"the run was ended on worker ({second.address})")
    assert sum("broken belt" in line for line in first.lines + second.lines) == 2


def test_a_process_that_fails_again_and_again_without_a_save_ends_the_run(hosts: list[Host], job: Job) -> None:
    host = hosts[1]
    host.start(*words_of(job, "1:2", host), STEP="1", ACTION="os.kill(os.getpid(), 9)")
    assert host.end(SECONDS) == 1
    host.wait_for("processes failed 3 times without a save between them")
    assert len(list(job.project.iterdir())) == 1


def test_ctrl_c_on_one_host_saves_and_ends_the_run_on_all(hosts: list[Host], job: Job) -> None:
    _, first, second = hosts
    begin(job, [first, second], words_of(job, "2", first))
    second.launcher.send_signal(signal.SIGINT)
    assert (first.end(SECONDS), second.end(SECONDS)) == (130, 130)
    first.wait_for("stopped; everything is saved")
    second.wait_for("the run was ended on worker")
    assert (job.project / "line" / "checkpoints" / "last").exists()


def test_a_fixed_number_of_hosts_ends_with_one_of_them(hosts: list[Host], job: Job, record: Record) -> None:
    _, first, second = hosts
    begin(job, [first, second], words_of(job, "2", first))
    began = time.monotonic()
    second.cut()
    assert (first.end(SECONDS), second.end(SECONDS)) == (1, 1)
    record(time.monotonic() - began)
    first.wait_for("1 of 2 hosts show no sign of life")
    second.wait_for("has lost the other hosts")
