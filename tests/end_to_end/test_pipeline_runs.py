"""`--strategy pipeline` from the command line: it trains, stops, goes on in one process, and says what it refuses."""

import os
import signal
from pathlib import Path

import pytest

from commands import TINY, TINY_NETWORK, Command, start
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
    assert "4 micro-batches, so BatchNorm in training sees 1 images at a time" in said
    done = len(read_records(Path("runs/cut")))
    more = start("train", "--resume", "runs/cut", "--processes", 1, "--epochs", done + 1)
    out, err = more.communicate()
    assert (more.returncode, err) == (0, ""), err
    assert f"going on in epoch {done + 1}" in out
    assert Path("runs/cut/report.html").exists()


@pytest.mark.slow
def test_a_stage_that_is_killed_ends_the_run_and_is_named(data: Path) -> None:
    text = Path(TINY_NETWORK.split(":")[0]).read_text()
    Path("my_model.py").write_text(f"""{text}
import os, torch

class Dying(torch.nn.Identity):
    steps = 0

    def forward(self, maps):
        self.steps += self.training
        if self.steps == 20 and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), 9)
        return maps


def build(num_classes):
    network = Tiny(num_classes)
    network.coarse = torch.nn.Sequential(network.coarse, Dying())
    network.fine = torch.nn.Sequential(network.fine, Dying())
    network.head.predicts = Dying()
    network.head.register_forward_pre_hook(lambda head, inputs: (head.predicts(inputs[0]),))
    return network
""")
    words = ["--model", "my_model.py:build", *PIPELINE[2:]]
    run = start("train", "--data", data, "--epochs", 50, "--val-period", 100, *words)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "yoloyard: process 1, last seen at epoch" in err
    assert "was killed or hangs" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--processes", "1"], "say how many by --processes"),
        (["--compile"], "--strategy pipeline does not go with --compile"),
        (["--batch", "auto"], "with --strategy pipeline say a number"),
        (["--multi-scale"], "does not go with --multi-scale"),
    ],
)
def test_what_a_pipeline_cannot_do_is_refused(data: Path, yoloyard: Command, words: list[str], says: str) -> None:
    code, _, err = yoloyard("train", "--data", data, *TINY, "--strategy", "pipeline", *words)
    assert code == 2
    assert says in err
    assert not Path("runs").exists()
