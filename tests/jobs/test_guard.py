"""guard.sh: what keeps the keeper, and releases the host, with real processes."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from keeping import job_folder

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


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until this holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_the_host_is_released_whatever_the_end_is(tmp_path: Path, shell: list[str]) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    for code in (0, 2, 3):
        folder = guarded(tmp_path / str(code), run=f"exit {code}")
        assert start(folder, shell).wait(20) == code
        assert (folder / "released").exists()
