"""What the parts of gpu.py share: how much is done, processes with a limit, and the device."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from yoloyard.common.device import choose_precision

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
MODELS = ("yolo11n", "yolov5s", "yolo11m", "yolo11x")
MODES = ("float32", "amp")
CLASSES = 80


@dataclass(frozen=True)
class Sizes:
    """How much is done. Times are seconds."""

    models: tuple[str, ...]
    imgsz: int
    batches: tuple[int, ...]
    compiled_batches: tuple[int, ...]  # all models with the first one, then as far as time allows
    seconds: float  # that a figure is measured for
    checks: float  # the most that these parts may take; `steps` is looked at between two figures
    items: float
    runs: float
    steps: float
    compiled: float  # of one model
    total: float
    matmul: int
    images: int  # of the loader, each in COPIES files
    image_size: int
    demo: tuple[int, int, int]  # images for training and validation, pixels
    epochs: int


FULL = Sizes(
    models=MODELS,
    imgsz=640,
    batches=(8, 16, 32, 64, 128),
    compiled_batches=(16, 64, 32),
    seconds=1.5,
    checks=120,
    items=60,
    runs=150,
    steps=110,
    compiled=100,
    total=460,
    matmul=8192,
    images=48,
    image_size=1024,
    demo=(400, 100, 320),
    epochs=12,
)
REHEARSAL = Sizes(
    models=MODELS,
    imgsz=64,
    batches=(1, 2),
    compiled_batches=(2, 1),
    seconds=0.1,
    checks=240,
    items=60,
    runs=300,
    steps=15,
    compiled=8,
    total=640,
    matmul=256,
    images=4,
    image_size=128,
    demo=(8, 4, 96),
    epochs=1,
)


def run_limited(command: list[str], limit: float) -> tuple[str, str]:
    """What a command writes to its standard output, up to its end or the limit in seconds; what went wrong, or ""."""
    try:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=max(limit, 1), check=False
        )
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode(errors="replace"), f"no end within {limit:.0f} s"
    ending = f"it ended with exit code {done.returncode}" if done.returncode else ""
    return done.stdout.decode(errors="replace"), ending


def dtype_of(device: torch.device, mode: str) -> torch.dtype:
    return choose_precision(device, amp=mode == "amp").dtype


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
