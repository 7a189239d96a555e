"""`--compile` through the command line, on a machine whose compiler doesn't work: the run goes on without it."""

import json
from pathlib import Path

import pytest

from commands import Command, start

NETWORK = """\
from torch import nn
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorFreeHead

class Small(Detector):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 9, stride=8, padding=4)
        self.down = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8)) for _ in range(2))
        self.head = AnchorFreeHead((8, 8, 8), num_classes, (8, 16, 32), depthwise=False)

    def forward(self, x):
        maps = [self.stem(x)]
        for down in self.down:
            maps.append(down(maps[-1]))
        return self.head(maps)
"""
WORDS = ["--imgsz", 64, "--batch", 4, "--no-amp", "--no-tensorboard", "--device", "cpu"]


@pytest.mark.slow
def test_without_a_compiler_training_goes_on_and_says_so(
    data: Path, yoloyard: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("my_model.py").write_text(NETWORK)
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    words = ["train", "--model", "my_model.py:Small", "--data", data, "--epochs", 1, "--compile", *WORDS]
    process = start(*words)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err == ""
    (line,) = [line for line in out.splitlines() if line.startswith("compile: ")]
    assert line.startswith("compile: this does not work here, training goes on without it: ")
    assert "compiler" in line
    # what was compiled or not leaves no trace: the run goes on without the word
    assert yoloyard("train", "--resume", "runs/line", "--epochs", 2, "--no-compile")[0] == 0
    assert json.loads(Path("runs/line/checkpoints/last/state.json").read_text())["spec"]["config"]["compile"] is False
