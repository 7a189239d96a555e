"""What takes minutes: the demo as the README promises it, and runs that are killed at any moment."""

import re
from pathlib import Path

import pytest

from commands import Command
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
