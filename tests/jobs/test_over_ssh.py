"""Jobs over ssh: a real sshd, the real guard and keeper, and a training that is made up."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssh_host import Laptop, SshHost, missing, ssh_host, wait_until
from yoloyard.jobs.setting_up import MARK, venv_name
from yoloyard.machines.image.versions import find_tag

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

MADE_UP = Path(__file__).with_name("made_up_training.py")
# Python in the host's environment: doctor's findings are in a file, the keeper starts the training that is made up.
PYTHON = f"""#!/bin/sh
case "$*" in
  *doctor*) . {{host}}/doctor ;;
  *yoloyard.jobs.node*) exec {sys.executable} -c 'import runpy, sys
from yoloyard.jobs.node import keeper, training
training.COMMAND, sys.argv = (sys.executable, "{MADE_UP}"), sys.argv[-2:]
keeper.LOOK_SECONDS = keeper.WRITE_SECONDS = 0.2
runpy.run_module("yoloyard.jobs.node", run_name="__main__")' "$@" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""
FIT = "echo '{\"findings\": []}'"
JOB = """name: {name}
train: {{data: parts/data.yaml, epochs: 3}}
image: cpu
on: {on}
"""


def give_environment(host: SshHost, python: str) -> None:
    """Put an environment where a whole one is expected, whose Python is this script."""
    venv = Path(host.home, ".yoloyard/venvs", venv_name(find_tag("cpu")))
    (venv / "bin").mkdir(parents=True)
    (venv / "whole").touch()
    (venv / "bin/python").write_text(python)
    (venv / "bin/python").chmod(0o755)
    host.own()


def git(folder: Path, *words: str) -> None:
    """Run git as somebody, always at the same time, so that equal files give equal commits."""
    dates = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), "2026-11-30T09:00:00Z")
    argv = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@host", *words]
    subprocess.run(argv, cwd=folder, env=os.environ | dates, check=True)


def laptop_with_job(folder: Path, host: SshHost, name: str, large: int = 0) -> Laptop:
    """A laptop with a repository and its job; its data have a file of `large` bytes."""
    laptop = Laptop(folder, host)
    for split in ("train", "val"):
        for kind, suffix, text in (("images", "jpg", "pixels"), ("labels", "txt", "0 0.5 0.5 0.1 0.1\n")):
            place = folder / f"parts/{kind}/{split}"
            place.mkdir(parents=True)
            for number in range(3):
                (place / f"{number}.{suffix}").write_text(text)
    if large:
        (folder / "parts/images/train/large.jpg").write_bytes(bytes(range(256)) * (large // 256))
    (folder / "parts/data.yaml").write_text("train: images/train\nval: images/val\nnames: [scratch]\n")
    (folder / "job.yaml").write_text(JOB.format(name=name, on=host.address))
    (folder / ".gitignore").write_text("*\n!job.yaml\n!.gitignore\n!*.py\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "A job")
    return laptop


@pytest.fixture(scope="module")
def host() -> Iterator[SshHost]:
    """A host whose user has a home folder with a space, and an environment."""
    with ssh_host(home="my home") as made:
        give_environment(made, PYTHON.replace("{host}", str(made.folder)))
        (made.folder / "doctor").write_text(FIT)
        made.program("podman", "exit 125")
        yield made


def behaves(host: SshHost, name: str, behaviour: str) -> None:
    """What the job's trainings do; its folder need not be there yet."""
    folder = host.job_folders / name
    for made in (folder.parent, folder, folder / MARK):
        if not made.exists():
            made.touch() if made.name == MARK else made.mkdir()
    (folder / "behaviour").write_text(behaviour)
    host.own()


def status(laptop: Laptop, *words: object) -> dict[str, object]:
    document: dict[str, object] = json.loads(laptop.run("jobs", "status", *words, "--json"))
    return document


def test_a_job_goes_on_without_its_laptop_and_is_seen_from_another(host: SshHost, tmp_path: Path) -> None:
    first = laptop_with_job(tmp_path / "first", host, "line")
    behaves(host, "line", "runs 100000\nruns 3")
    (first.folder / "new.py").write_text("print('not committed')\n")
    assert "new.py" in first.run("launch")
    watching = first.start("jobs", "logs", "-f", "line")
    wait_until(lambda: status(first, "line")["state"] == "running")
    watching.kill()
    assert watching.wait() == -signal.SIGKILL
    folder = host.job_folders / "line"
    assert (folder / "source/new.py").exists()
    assert sorted(path.name for path in (folder / "data").rglob("*.jpg")) == sorted(2 * ["0.jpg", "1.jpg", "2.jpg"])

    # Another laptop has the job file and a key, and no lock.
    shutil.rmtree(first.folder / "parts")
    other = laptop_with_job(tmp_path / "second", host, "line")
    seen = status(other, "job.yaml")
    assert (seen["run"], seen["state"], seen["attempts"]) == ("line", "running", 1)
    assert "line" in other.run("jobs", "list", "--on", host.address)
    assert "no job was launched" in other.run("jobs", "list")
    assert "another" in other.run("launch", code=2)  # it has no new.py
    (other.folder / "new.py").write_text("print('not committed')\n")
    assert "is running" in other.run("launch")
    assert "stopped" in other.run("jobs", "stop", "job.yaml")

    (other.folder / "parts/images/val/2.jpg").unlink()
    (folder / "data/mine.txt").write_text("somebody's own")
    (folder / "source/mine.txt").write_text("somebody's own")
    other.run("launch")
    other.run("jobs", "logs", "-f", "line")
    assert "--resume" in (folder / "starts").read_text().splitlines()[1]
    assert not (folder / "data/images/val/2.jpg").exists()
    assert (folder / "data/mine.txt").exists()
    assert (folder / "source/mine.txt").exists()
    assert status(other, "line")["state"] == "finished"
    other.run("jobs", "fetch", "line")
    assert (other.folder / "runs/line/status.json").exists()
    assert not (other.folder / "runs/line/checkpoints").exists()
    assert "finished" in other.run("jobs", "list")


def test_a_connection_that_breaks_in_the_middle_of_a_sync_goes_on(host: SshHost, tmp_path: Path) -> None:
    laptop = laptop_with_job(tmp_path / "laptop", host, "sync", large=2_048_000)
    behaves(host, "sync", "runs 3")
    laptop.program("rsync", f'exec {shutil.which("rsync")} --bwlimit=1200 "$@"')
    sending = laptop.start("launch")
    parts = host.job_folders / "sync/data/images/train"
    wait_until(lambda: any(path.stat().st_size > 500_000 for path in parts.glob(".large*")))
    host.cut()
    said = sending.communicate()[0]
    assert sending.returncode == 1
    assert "sending the data failed" in said
    assert "the same command goes on from there" in said
    wait_until(lambda: list(parts.glob(".rsync-partial/large.jpg")))
    assert not (host.job_folders / "sync/launch.json").exists()
    laptop.program("rsync", f'exec {shutil.which("rsync")} --stats "$@"')
    started = laptop.start("launch").communicate()[0]
    matched = sum(int(line.split()[2].replace(",", "")) for line in started.splitlines() if "Matched data" in line)
    assert matched > 500_000, started  # what had arrived was not sent again
    assert (parts / "large.jpg").stat().st_size == 2_048_000
    assert not (parts / ".rsync-partial").exists()
    laptop.run("jobs", "logs", "-f", "sync")
    assert status(laptop, "sync")["state"] == "finished"


def test_one_of_two_launches_wins_and_one_that_breaks_goes_on(host: SshHost, tmp_path: Path) -> None:
    laptop = laptop_with_job(tmp_path / "laptop", host, "launching")
    behaves(host, "launching", "runs 3")
    going = host.folder / "doctor-is-at-work"
    (host.folder / "doctor").write_text(f"touch {going}; sleep 60 & wait $!")
    first = laptop.start("launch")
    wait_until(going.exists)
    assert "another launch of launching is at work" in laptop.run("launch", code=1)
    host.cut()
    said = first.communicate()[0]
    assert first.returncode == 1
    assert "the connection to" in said
    going.unlink()
    second = laptop.start("launch")  # nothing holds the lock any more
    wait_until(going.exists)
    second.kill()
    second.wait()
    (host.folder / "doctor").write_text(FIT)
    assert "launching is started" in laptop.run("launch")
    laptop.run("jobs", "logs", "-f", "launching")
    assert status(laptop, "launching")["state"] == "finished"
    assert "launching-2 is started" in laptop.run("launch")


@pytest.mark.slow
def test_logs_go_on_after_a_connection_that_broke(host: SshHost, tmp_path: Path) -> None:
    laptop = laptop_with_job(tmp_path / "laptop", host, "logs")
    behaves(host, "logs", "runs 100000")
    laptop.run("launch")
    watching = laptop.start("jobs", "logs", "-f", "logs")
    log = host.job_folders / "logs/log.txt"
    with log.open("a") as file:
        file.write("before the cut\n")
    assert watching.stdout is not None
    assert watching.stdout.readline() == "before the cut\n"
    host.cut()
    with log.open("a") as file:
        file.write("after the cut\n")
    laptop.run("jobs", "stop", "logs")
    said = watching.communicate()[0]
    assert watching.returncode == 0, said
    assert said.count("before the cut") == 0
    assert said.count("after the cut") == 1
    assert "connecting again" in said


@pytest.mark.slow
def test_a_job_that_fails_at_once_says_why(host: SshHost, tmp_path: Path) -> None:
    laptop = laptop_with_job(tmp_path / "laptop", host, "wrong")
    behaves(host, "wrong", "wrong")
    assert "unknown setting 'batsch'; did you mean 'batch'?" in laptop.run("launch", code=1)
    assert "unknown setting" in laptop.run("jobs", "status", "wrong")


@pytest.mark.slow
def test_release_is_a_command_of_the_users_and_runs_at_the_end(host: SshHost, tmp_path: Path) -> None:
    laptop = laptop_with_job(tmp_path / "laptop", host, "released")
    behaves(host, "released", "runs 3")
    laptop.run("launch", "--release", "touch given-back")
    wait_until((host.job_folders / "released/given-back").exists)
    assert "nothing gives" in laptop.run("launch")
    assert not (host.job_folders / "released/release.sh").exists()


def test_what_doctor_finds_stops_a_launch_before_data_are_sent(host: SshHost, tmp_path: Path) -> None:
    laptop = laptop_with_job(tmp_path / "laptop", host, "unfit")
    finding = {"check": "disk-free", "title": "disk", "verdict": "problem", "evidence": "1 MB", "remedy": "delete"}
    (host.folder / "doctor").write_text(f"echo '{json.dumps({'findings': [finding]})}'")
    assert "is not fit for the job, and no data was sent. disk: 1 MB -> delete" in laptop.run("launch", code=1)
    (host.folder / "doctor").write_text(FIT)
    assert not (host.job_folders / "unfit/data").exists()


@pytest.mark.slow
def test_a_job_runs_in_the_image_where_docker_has_it(host: SshHost, tmp_path: Path) -> None:
    laptop = laptop_with_job(tmp_path / "laptop", host, "contained")
    behaves(host, "contained", "runs 3")
    python = f"{host.home}/.yoloyard/venvs/{venv_name(find_tag('cpu'))}/bin/python"
    host.program("docker", f"""echo "$*" >> {host.folder}/calls
case "$1" in stop | rm) exit 1 ;; run) ;; *) exit ;; esac
for word; do
    shift
    case "$word" in --env=PYTHONPATH=*) export "${{word#--env=}}" ;; yoloyard:*) break ;; esac
done
shift 2
exec '{python}' "$@" """)  # fmt: skip
    said = laptop.run("launch")
    (host.programs / "docker").unlink()
    assert "in the image yoloyard:cpu-runtime" in said
    laptop.run("jobs", "logs", "-f", "contained")
    assert status(laptop, "contained")["state"] == "finished"
    calls = [line for line in (host.folder / "calls").read_text().splitlines() if line.startswith("run ")]
    assert [line.rpartition("yoloyard:cpu-runtime -- python3 ")[2].split()[:2] for line in calls] == [
        ["-m", "yoloyard"], ["-m", "yoloyard.jobs.node"],
    ]  # fmt: skip
    root = f"{host.home}/.yoloyard"
    assert f"--volume={root}:{root} " in calls[1]
    assert "--name=yoloyard-contained" in calls[1]
    assert f"--workdir={root}/jobs/contained " in calls[1]


def test_a_folder_that_is_not_of_a_job_is_left_alone(host: SshHost, tmp_path: Path) -> None:
    laptop = laptop_with_job(tmp_path / "laptop", host, "theirs")
    (host.job_folders / "theirs").mkdir(parents=True)
    (host.job_folders / "theirs/thesis.txt").write_text("mine")
    host.own()
    assert "no job of yoloyard" in laptop.run("launch", code=1)
    assert [path.name for path in (host.job_folders / "theirs").iterdir()] == ["thesis.txt"]
