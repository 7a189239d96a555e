"""`--strategy pipeline` from the command line: it trains, stops, and goes on in one process."""

import os
import signal
from pathlib import Path

import pytest

from commands import TINY, start
from yoloyard.training.listeners.results import read_records

PIPELINE = [*TINY, "--strategy", "pipeline", "--processes", "2", "--hang-timeout", "4"]


@pytest.mark.slow
def test_a_run_of_two_stages_stops_and_goes_on_in_one_process(data: Path) -> None:
    run = start("train", "--data", data, "--epochs", 500, "--name", "cut", *PIPELINE)
    assert run.stdout is not None
    lines = []
    while "epoch 2/" not in (line := run.stdout.readline()):
        lines.append(line)
    os.kill(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGINT
    assert err.count("everything is saved") == 1
    said = next(line for line in lines if line.startswith("pipeline: "))
    assert "stages stem to coarse" in said
    assert "4 micro-batches, so BatchNorm in training sees 1 image at a time" in said
    done = len(read_records(Path("runs/cut")))
    more = start("train", "--resume", "runs/cut", "--processes", 1, "--epochs", done + 1)
    out, err = more.communicate()
    assert (more.returncode, err) == (0, ""), err
    assert f"going on in epoch {done + 1}" in out
    assert Path("runs/cut/report.html").exists()
