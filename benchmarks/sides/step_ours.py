"""Our side of step.py: the trainer's step on batches of the real loader, or the network's bare forward and backward.

`--bare` works on the same network and images, with ones as the gradients of its maps. Each batch is an update.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from turns import Turns

from yoloyard import cpu
from yoloyard.common.device import Precision
from yoloyard.common.structures import images_to_float
from yoloyard.config.settings import TrainConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import load_index
from yoloyard.data.loading.loader import make_train_loader
from yoloyard.losses import build_criterion
from yoloyard.models import registry
from yoloyard.training.engine.engine import Engine, Verdict

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--bare", action="store_true")
    arguments = parser.parse_args()
    turns = Turns()
    torch.manual_seed(0)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    steps = make_steps(arguments.data, Precision("cpu", getattr(torch, arguments.dtype)), arguments.bare)
    while turns.wait():
        began, ended = steps()
        turns.report(seconds=ended - began, threads=torch.get_num_threads())


def make_steps(data: Path, precision: Precision, bare: bool, imgsz: int = 640) -> Callable[[], tuple[float, float]]:
    """What makes a step and gives its beginning and end in seconds; loading the batch is not in them."""
    config = TrainConfig(imgsz=imgsz, batch=BATCH, workers=0)
    config = replace(config, optimization=replace(config.optimization, optimizer="SGD", nbs=8, warmup_epochs=0))
    index = load_index(read_data_yaml(data), "train")
    loader = make_train_loader(index, config)
    batches = chain.from_iterable(loader.epoch(epoch) for epoch in range(100))
    detector = registry.build("yolo11n", num_classes=80).train()
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    criterion, gains = build_criterion(detector.head, config)
    around = cpu.prepare_training(detector, criterion, precision, num_processes=1)
    engine = Engine(detector, criterion, gains, precision, config, len(loader), around_step=around)
    optimizer = engine.optimizer
    unread: list[Verdict] = []

    def step() -> tuple[float, float]:
        batch = next(batches)
        began = time.perf_counter()
        report = engine.step(batch)
        if unread:
            unread.pop().read()
        unread.append(report.send())
        return began, time.perf_counter()

    def bare_step() -> tuple[float, float]:
        images = images_to_float(next(batches).images)
        optimizer.zero_grad()
        began = time.perf_counter()
        with precision.autocast():
            maps = detector(images)
        torch.autograd.backward(maps, [torch.ones_like(level) for level in maps])
        return began, time.perf_counter()

    return bare_step if bare else step


if __name__ == "__main__":
    main()
