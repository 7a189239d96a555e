"""What MuSGD takes of a training step on this CPU: all of it, and its Newton-Schulz iterations alone.

`python benchmarks/musgd.py --model yolo26n --batch 8 --imgsz 320` prints medians of a few steps in seconds of CPU time.
Each batch is an update, as with `--nbs BATCH`; with the default, 64 images an update, the share is smaller.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from yoloyard import cpu
from yoloyard.common.device import choose_precision
from yoloyard.common.structures import Batch
from yoloyard.config.settings import TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.models import registry
from yoloyard.training.engine.engine import Engine
from yoloyard.training.engine.optimizers import musgd

BOXES, CLASSES = 10, 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="yolo26n")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = TrainConfig(imgsz=arguments.imgsz, batch=arguments.batch)
    optimization = replace(config.optimization, optimizer="MuSGD", nbs=arguments.batch, warmup_epochs=0)
    config = replace(config, optimization=optimization)
    detector = registry.build(arguments.model, num_classes=CLASSES).train()
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    criterion, gains = build_criterion(detector.head, config)
    precision = choose_precision(torch.device("cpu"), amp=True)
    around = cpu.prepare_training(detector, criterion, precision, num_processes=1)
    engine = Engine(detector, criterion, gains, precision, config, 100, around_step=around)
    spent: dict[str, float] = {}
    engine.optimizer.step = timed(engine.optimizer.step, "MuSGD", spent)  # type: ignore[method-assign]
    musgd.orthogonalised = timed(musgd.orthogonalised, "Newton-Schulz", spent)
    step = timed(engine.step, "step", spent)
    found: dict[str, list[float]] = {"step": [], "MuSGD": [], "Newton-Schulz": []}
    for number in range(arguments.steps + 1):
        spent.clear()
        step(some_batch(arguments.batch, arguments.imgsz))
        for name, seconds in found.items():
            seconds += [spent[name]] * (number > 0)  # the first one allocates memory
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    shown = ", ".join(f"{name} {value:.3f} s ({value / medians['step']:.1%})" for name, value in medians.items())
    where = f"{arguments.model}, batch {arguments.batch}, {arguments.imgsz} pixels, {precision.name}"
    print(f"{where}, {torch.get_num_threads()} threads: {shown}")


def timed(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    """`function`, which adds the CPU seconds that it takes to `spent`."""

    def call(*arguments: Any) -> Any:
        began = time.process_time()
        result = function(*arguments)
        spent[name] = spent.get(name, 0) + time.process_time() - began
        return result

    return call


def some_batch(images: int, side: int) -> Batch:
    """Noise with boxes."""
    corners = torch.rand(images, BOXES, 2) * 0.6 * side
    boxes: Tensor = torch.cat((corners, corners + (0.05 + 0.3 * torch.rand(images, BOXES, 2)) * side), dim=2)
    return Batch(
        torch.randint(0, 256, (images, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2),
        boxes,
        torch.randint(0, CLASSES, (images, BOXES)),
        torch.zeros(images, BOXES, dtype=torch.bool),
        list(range(images)),
        [None] * images,
    )


if __name__ == "__main__":
    main()
