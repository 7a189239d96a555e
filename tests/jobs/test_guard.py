"""guard.sh: what keeps the keeper, and releases the host, with real processes."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from keeping import job_folder, starts, state_of, until

from yoloyard.jobs import node

SHELLS = [["dash"], ["busybox", "sh"], ["bash", "--posix"]]
KEEPER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from keeping import MADE_UP
from yoloyard.common.log import shown_lines
from yoloyard.jobs.node import keeper, training
training.COMMAND, keeper.LOOK_SECONDS = MADE_UP, 0.1
with shown_lines(lambda line: print(line, flush=True)):
    sys.exit(keeper.keep(Path({folder!r})))
"""
SHORT = {"TICK": "0.1", "MARGIN": "1", "SAVE": "3", "HUNG": "900", "PAUSE": "0.1"}


def guarded(folder: Path, behaviour: str = "", run: str = "", **facts: Any) -> Path:
    """A job's folder whose run.sh starts the keeper, or does what `run` says; releasing leaves the file `released`."""
    job_folder(folder, behaviour, **facts)
    shutil.copy(Path(node.__file__).with_name("guard.sh"), folder)
    (folder / "keep.py").write_text(KEEPER.format(tests=str(Path(__file__).parent), folder=str(folder)))
    (folder / "run.sh").write_text(run or f"exec {sys.executable} keep.py\n")
    (folder / "release.sh").write_text("touch released\n")
    return folder


def start(folder: Path, shell: list[str] | None = None, **seconds: str) -> "subprocess.Popen[bytes]":
    """Start the guard, with short times."""
    variables = {f"YOLOYARD_{name}_SECONDS": value for name, value in (SHORT | seconds).items()}
    path = f"{folder / 'bin'}:{os.environ['PATH']}"  # where a test has a crontab
    return subprocess.Popen(
        [*(shell or ["sh"]), str(folder / "guard.sh")], env=os.environ | variables | {"PATH": path}, cwd="/"
    )


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_the_host_is_released_whatever_the_end_is(tmp_path: Path, shell: list[str]) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    for code in (0, 2, 3):
        folder = guarded(tmp_path / str(code), run=f"exit {code}")
        assert start(folder, shell).wait(20) == code
        assert (folder / "released").exists()


def test_a_killed_keeper_is_followed_by_another_that_takes_up_the_training(tmp_path: Path) -> None:
    folder = guarded(tmp_path / "job", "runs 100")
    guard = start(folder)
    until(lambda: (folder / "training.json").exists() and (folder / "keeper.json").exists())
    for line in subprocess.run(
        ["pgrep", "-f", "keep.py", "-P", str(guard.pid)], check=False, capture_output=True
    ).stdout.split():
        os.kill(int(line), signal.SIGKILL)
    assert guard.wait(30) == 0
    assert "the keeper ended with status 137: it is started again" in (folder / "log.txt").read_text()
    assert (state_of(folder)["state"], state_of(folder)["attempts"]) == ("finished", 1)  # one attempt of this host
    assert len(starts(folder)) == 1
    assert (folder / "released").exists()


def test_a_keeper_that_always_crashes_is_given_up_and_the_training_saves(tmp_path: Path) -> None:
    folder = guarded(tmp_path / "job", "runs 10000")
    (folder / "run.sh").write_text(f"[ -e training.json ] && exit 1\nexec {sys.executable} keep.py\n")
    guard = start(folder, PAUSE="0.01")
    until((folder / "training.json").exists)
    keeper = int(
        subprocess.run(["pgrep", "-P", str(guard.pid), "-f", "keep.py"], check=False, capture_output=True).stdout
    )
    until((folder / "runs/line/status.json").exists)
    os.kill(keeper, signal.SIGKILL)
    assert guard.wait(30) == 1
    assert "6 times in a row: the job is given up" in (folder / "log.txt").read_text()
    assert json.loads((folder / "runs/line/status.json").read_text())["state"] == "interrupted"
    assert (folder / "runs/line/checkpoints/last/state.json").exists()
    assert (folder / "released").exists()


@pytest.mark.slow
def test_the_guard_has_a_timer_of_its_own_for_a_keeper_that_does_not_end(tmp_path: Path) -> None:
    folder = guarded(tmp_path / "job", run="trap '' TERM\nwhile :; do sleep 0.1; touch alive; done\n", max_hours=0.0001)
    assert start(folder, MARGIN="1", SAVE="0.5").wait(20) == 137
    log = (folder / "log.txt").read_text()
    assert "it is asked to end" in log
    assert "the keeper does not end: it is killed" in log
    assert (folder / "released").exists()


@pytest.mark.slow
def test_a_keeper_that_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    folder = guarded(tmp_path / "job", run="[ -e began ] && exit 0\ntouch began\nexec sleep 60\n")
    assert start(folder, HUNG="0.5").wait(20) == 0
    assert "no sign of life for 0.5 s: it is killed" in (folder / "log.txt").read_text()
    assert (folder / "released").exists()


def test_max_hours_from_the_guard_to_the_release(tmp_path: Path) -> None:
    folder = guarded(tmp_path / "job", "runs 10000", max_hours=0.0003)
    assert start(folder, MARGIN="900").wait(30) == 0
    assert state_of(folder)["state"] == "limit"
    assert json.loads((folder / "runs/line/status.json").read_text())["state"] == "interrupted"
    assert (folder / "released").exists()


def crontab_in(folder: Path) -> Path:
    """A crontab command for the guard; the file that it keeps."""
    (folder / "bin").mkdir()
    table, command = folder / "bin/table", folder / "bin/crontab"
    command.write_text(f'#!/bin/sh\n[ "$1" = -l ] && exec cat {table}\ncat > {table}.new && mv {table}.new {table}\n')
    command.chmod(command.stat().st_mode | stat.S_IEXEC)
    table.write_text("@daily something else\n")
    return table


@pytest.mark.slow
def test_after_a_reboot_the_job_goes_on_and_the_host_is_released_in_the_end(tmp_path: Path) -> None:
    folder = guarded(tmp_path / "job", "runs 10000\nruns 1", max_hours=1)
    (folder / "release.sh").write_text("test -e rebooted && touch released\n")  # a host that goes down takes no orders
    table = crontab_in(folder)
    guard = start(folder)
    until((folder / "runs/line/status.json").exists)
    entry = f"* * * * * sh '{folder}/guard.sh' 2> /dev/null"
    assert table.read_text() == f"@daily something else\n{entry}\n"
    guard.terminate()  # as at each shutdown
    until(lambda: "release.sh failed" in (folder / "log.txt").read_text())
    guard.kill()
    guard.wait()
    assert table.read_text() == f"@daily something else\n{entry.replace('* * * * *', '@reboot')}\n"
    assert state_of(folder)["state"] == "interrupted"
    (folder / "rebooted").touch()
    assert start(folder).wait(30) == 0  # what cron starts
    assert state_of(folder)["state"] == "finished"
    assert starts(folder) == ["", f"--resume={folder}/runs/line"]
    assert state_of(folder)["attempts"] == 2
    assert (folder / "released").exists()
    assert table.read_text() == "@daily something else\n"


@pytest.mark.slow
def test_one_guard_is_at_work_in_a_folder(tmp_path: Path) -> None:
    folder = guarded(tmp_path / "job", "runs 10000")
    first = start(folder)
    until((folder / "runs/line/status.json").exists)
    assert start(folder).wait(10) == 4
    first.terminate()
    assert first.wait(20) == 143
    assert len(starts(folder)) == 1


@pytest.mark.slow
def test_a_killed_guard_is_followed_by_another(tmp_path: Path) -> None:
    folder = guarded(tmp_path / "job", "runs 100")
    guard = start(folder)
    until((folder / "runs/line/status.json").exists)
    guard.kill()
    guard.wait()
    until((folder / "released").exists)
    assert (state_of(folder)["state"], state_of(folder)["attempts"]) == ("finished", 1)
    assert len(starts(folder)) == 1


@pytest.mark.slow
def test_a_full_disk_keeps_no_host(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    namespace = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.geteuid() else [])]
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)]
    if subprocess.run([*namespace, *mount], check=False, capture_output=True).returncode:
        pytest.skip("this user can mount no small disk")
    script = f"""
import subprocess, sys
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parent)]!r}
subprocess.run({mount!r}, check=True)
from test_guard import guarded, start, until
folder = guarded(Path({str(folder / "job")!r}), "runs 10000", max_hours=0.0005)
(folder / "release.sh").write_text("touch {tmp_path}/released")
guard = start(folder, MARGIN="900")
until((folder / "runs/line/status.json").exists)
with open(folder / "large", "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
guard.wait(60)
print((folder / "log.txt").read_text())
"""
    done = subprocess.run(
        [*namespace, sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "released").exists()
