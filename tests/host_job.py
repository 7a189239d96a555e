"""A run for several hosts that can be made slow, so that things happen in the middle of it."""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from commands import TINY

# With frozen BatchNorm any number of processes trains the same weights.
NETWORK = """
import os, signal, time
import torch

class Steady(Tiny):
    steps = 0

    def __init__(self, num_classes):
        super().__init__(num_classes)
        normalisations = [module for module in self.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for module in normalisations:
            module.momentum = 1.0
        super().forward(torch.rand(8, 3, 64, 64))  # so that signals keep their size
        for module in normalisations:
            module.requires_grad_(False)

    def forward(self, images):
        if self.training:
            self.steps += 1
            if os.path.exists(os.environ["SLOW"]):
                time.sleep(0.2 if self.steps <= 4 else 1.0)
            if self.steps == int(os.environ.get("STEP", 5)) and os.environ.get("ACTION"):
                exec(os.environ["ACTION"])
        return super().forward(images)
"""
BATCH, EPOCHS = 12, 40  # two batches an epoch


@dataclass
class Job:
    """A command that all hosts run, and what it writes where they share a disk."""

    words: list[object]
    project: Path
    slow: Path  # while this file is there, a step takes a second longer, the first four of a process less

    def losses(self, name: str = "line") -> list[float]:
        """The sum of the losses of each epoch so far."""
        path = self.project / name / "metrics.jsonl"
        lines = map(json.loads, path.read_text().splitlines()) if path.exists() else []
        return [sum(line[f"train/{part}"] for part in ("box", "cls", "dfl")) for line in lines if "train/box" in line]


def make_job(folder: Path, data: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that writes into `folder`; the processes see some variables."""
    monkeypatch.setenv("YOLOYARD_CACHE", str(folder / "cache"))
    monkeypatch.setenv("SLOW", str(folder / "slow"))
    (folder / "slow").touch()
    words = [
        *TINY[2:],
        "--model",
        f"{model}:Steady",
        "--data",
        data,
        "--epochs",
        EPOCHS,
        "--workers",
        0,
        "--name",
        "line",
    ]
    words[words.index("--batch") + 1] = BATCH
    words += ["--val-period", 1000, "--patience", 0, "--mosaic", 0, "--optimizer", "SGD", "--lr0", 0.0005]
    return Job(["train", *words], folder / "runs", folder / "slow")


def write_data(folder: Path) -> Path:
    """Write 24 training images with a bright square each into `folder`; returns their data.yaml."""
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 6)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 80, (64, 64, 3), dtype=np.uint8)
            x, y = random.integers(4, 30, 2)
            pixels[y : y + 30, x : x + 30] = 220
            cv2.imwrite(str(folder / "images" / split / f"{number}.png"), pixels)
            label = f"0 {(x + 15) / 64} {(y + 15) / 64} {30 / 64} {30 / 64}"
            (folder / "labels" / split / f"{number}.txt").write_text(label)
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [part]\n")
    return folder / "data.yaml"
