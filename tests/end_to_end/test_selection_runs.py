"""Runs with a part of the data, other batches and weighted classes: trained, evaluated and gone on with."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from commands import TINY, TINY_NETWORK, Command
from yoloyard.commands import train as run
from yoloyard.common.structures import Batch, images_to_float
from yoloyard.models.weights import read_weights
from yoloyard.training.engine.engine import Engine
from yoloyard.training.interrupt import Interrupted
from yoloyard.training.listeners.results import read_records

WORDS: dict[str, Any] = {
    "model": TINY_NETWORK, "imgsz": 64, "batch": 4, "amp": False, "tensorboard": False, "device": "cpu", "epochs": 2,
    "workers": 0,
}  # fmt: skip
EVERYTHING: dict[str, Any] = {
    "classes": ["scratch", "dent", 2], "fraction": 0.7, "rect": True, "multi_scale": True, "class_weights": "balanced",
    "repeat_factor": 0.8,
}  # fmt: skip


def last_figures(folder: Path) -> dict[str, float]:
    record = read_records(folder)[-1]
    return {name.split("/")[1]: value for name, value in record.items() if name.startswith("val/")}


@pytest.mark.parametrize("words", [["--classes", "scratch,stain"], ["--single-cls"]])
def test_val_makes_the_figures_of_training(data: Path, yoloyard: Command, words: list[str]) -> None:
    code, out, err = yoloyard("train", "--data", data, "--epochs", 2, "--name", "part", *words, *TINY)
    assert (code, err) == (0, "")
    metadata = read_weights(Path("runs/part/weights/last.safetensors"))[1]
    if "--classes" in words:
        assert "classes scratch, stain alone: " in out
        assert yaml.safe_load(Path("runs/part/config.yaml").read_text())["classes"] == "0,2"
        assert len(metadata["names"]) == 5
    else:
        assert "all classes are one: object" in out
        assert metadata["names"] == ["object"]
    code, out, err = yoloyard("val", "--weights", "runs/part/weights/last.safetensors", "--data", data)
    assert (code, err) == (0, "")
    assert json.loads(Path("runs/val/metrics.json").read_text()) == last_figures(Path("runs/part"))
    rows = [line.split("│")[1:4] for line in out.splitlines() if line.startswith("│")]
    boxes = {name.strip(): int(count) for name, _, count in rows}
    assert 0 < boxes.pop("all") == sum(boxes.values())
    assert {name for name, count in boxes.items() if count} <= {"object", "scratch", "stain"}
    assert len(boxes) == len(metadata["names"])


def test_a_run_with_all_of_it_goes_on_bit_equal(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = WORDS | EVERYTHING | {"data": str(data)}
    sizes = set()
    original = Engine.backward
    steps = 0

    def forward(images: torch.Tensor) -> torch.Tensor:
        sizes.add(tuple(images.shape[2:]))
        return images_to_float(images)

    def backward(engine: Engine, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return original(engine, batch)

    monkeypatch.setattr(Engine, "backward", backward)
    monkeypatch.setattr("yoloyard.training.engine.backward.images_to_float", forward)
    stop_at = 0
    whole = run.train(words | {"name": "whole"})
    said = capsys.readouterr().out
    for line in ("classes scratch, dent, stain alone", "fraction 0.7: 10 training images", "rect: ", "class weights: "):
        assert line in said
    assert "repeat factor 0.8: an epoch has" in said
    assert len(sizes) > 1
    assert all(side % 32 == 0 for size in sizes for side in size)
    config = yaml.safe_load((whole.folder / "config.yaml").read_text())
    assert (config["mosaic"], config["mixup"], len(config["class_weights"].split(","))) == (0, 0, 5)

    steps, stop_at = 0, 2
    with pytest.raises(Interrupted):
        run.train(words | {"name": "parts"})
    run.train(EVERYTHING, resume="runs/parts")
    one, _ = read_weights(whole.folder / "weights" / "last.safetensors")
    other, _ = read_weights(Path("runs/parts/weights/last.safetensors"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rect", "--mosaic", "0.5"], "--rect has no mosaic"),
        (["--single-cls", "--class-weights", "balanced"], "--single-cls leaves one class"),
        (["--class-weights", "1,2"], "--class-weights has 2 numbers, but there are 5 classes"),
        (["--classes", "scrach"], "unknown class 'scrach'; did you mean 'scratch'"),
        (["--fraction", "0"], "--fraction must be above 0"),
        (["--fraction", "1.5"], "'fraction' must be at most 1"),
    ],
)
def test_what_cannot_be_is_refused(data: Path, yoloyard: Command, words: list[str], message: str) -> None:
    code, _, err = yoloyard("train", "--data", data, *words, *TINY)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not Path("runs").exists()
