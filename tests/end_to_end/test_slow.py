"""What takes minutes: the demo as the README promises it, and runs that are killed at any moment."""

import json
import random
import re
import subprocess
from pathlib import Path

import pytest

from commands import TINY, Command, start
from yoloyard.common.files import restore_whole_folder
from yoloyard.models.weights import read_weights
from yoloyard.training.listeners.results import read_records

MAKEFILE = Path(__file__).parents[2] / "Makefile"

pytestmark = pytest.mark.slow


def test_the_demo_learns_what_cannot_be_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, yoloyard: Command
) -> None:
    """The commands of `make demo`: below 0.05 after an epoch, above 0.5 at the end."""
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^\t\$\(BIN\)/yoloyard (.+)$", MAKEFILE.read_text(), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["demo", "train", "predict"]
    for command in commands:
        code, _, err = yoloyard(*command.split())
        assert (code, err) == (0, "")
    records = read_records(Path("runs/demo"))
    assert records[0]["val/map50"] < 0.05
    _, metadata = read_weights(Path("runs/demo/weights/best.safetensors"))
    assert metadata["metrics"]["map50"] > 0.5
    assert len(list(Path("runs/demo-images").glob("*.jpg"))) == 10


def test_a_run_killed_at_any_moment_goes_on(data: Path, yoloyard: Command) -> None:
    """Killed without warning ten times, often while it saves; each time it goes on, and in the end it is complete."""
    when = random.Random(0)
    checkpoints = Path("runs/line/checkpoints")
    # More epochs than any machine trains in that time, so that every kill falls into the run.
    words: list[object] = ["train", "--data", data, "--epochs", 5000, "--save-period", 1, "--exist-ok", *TINY]
    for _ in range(10):
        process = start(*words)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3 + 5 * when.random())
        process.kill()
        process.communicate()
        if (checkpoints / "last").exists() or (checkpoints / ".last.old").exists():
            words = ["train", "--resume", "runs/line"]
    restore_whole_folder(checkpoints / "last")
    trained = json.loads((checkpoints / "last" / "state.json").read_text())["progress"]["epoch"]
    code, _, err = yoloyard("train", "--resume", "runs/line", "--epochs", trained + 2)
    assert (code, err) == (0, "")
    epochs = [record["epoch"] for record in read_records(Path("runs/line"))]
    assert epochs == list(range(1, trained + 3))
    for name in ("best", "last"):
        read_weights(Path(f"runs/line/weights/{name}.safetensors"))
