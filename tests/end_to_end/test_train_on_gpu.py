"""The command line on a CUDA GPU."""

import json
from pathlib import Path

import pytest
import torch

from commands import Command

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
WORDS = ["--imgsz", 64, "--batch", 4, "--no-tensorboard", "--device", "cuda", "--workers", 2]


@pytest.mark.parametrize("more", [[], ["--no-amp"], ["--compile"]], ids=["amp", "float32", "compile"])
def test_a_training_on_the_gpu_and_its_figures_from_val(data: Path, yoloyard: Command, more: list[str]) -> None:
    code, out, err = yoloyard("train", "--data", data, "--epochs", 2, *WORDS, *more)
    assert (code, err) == (0, "")
    assert "training yolo11n on cuda" in out
    assert ("compile: the network was compiled" in out) == ("--compile" in more)
    weights = Path("runs/line/weights/last.safetensors")
    assert yoloyard("val", "--weights", weights, "--data", data, "--device", "cuda")[0] == 0
    last = json.loads(Path("runs/line/metrics.jsonl").read_text().splitlines()[-1])
    figures = json.loads(Path("runs/val/metrics.json").read_text())
    assert figures == pytest.approx({name: last[f"val/{name}"] for name in figures}, abs=1e-3)


def test_a_run_goes_on_on_the_cpu_and_back(data: Path, yoloyard: Command) -> None:
    assert yoloyard("train", "--data", data, "--epochs", 1, *WORDS)[0] == 0
    assert yoloyard("train", "--resume", "runs/line", "--epochs", 2, "--device", "cpu")[0] == 0
    assert yoloyard("train", "--resume", "runs/line", "--epochs", 3, "--device", "cuda")[0] == 0
    epochs = [json.loads(line)["epoch"] for line in Path("runs/line/metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3]
