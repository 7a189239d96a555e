"""A side of two_processes.py: in each turn one or several processes, a thread each, train on shared batches."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from turns import Turns

from yoloyard import cpu
from yoloyard.common.device import Precision
from yoloyard.config.settings import TrainConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import load_index
from yoloyard.data.loading.loader import make_train_loader
from yoloyard.losses import build_criterion
from yoloyard.models import registry
from yoloyard.training.distributed.collectives import Team, connect, meet_team
from yoloyard.training.engine.engine import Engine
from yoloyard.training.strategies import build_strategy

BATCHES = 4  # of a turn


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--dtype")
    parser.add_argument("--imgsz", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--processes", type=int)
    parser.add_argument(
        "--apart", action="store_true", help="each process trains by itself, on its share of the images"
    )
    arguments = parser.parse_args()
    others: list[subprocess.Popen[bytes]] = []
    if "RANK" not in os.environ and arguments.processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
        os.environ |= place | {"WORLD_SIZE": str(arguments.processes), "RANK": "0", "LOCAL_RANK": "0"}
        for rank in map(str, range(1, arguments.processes)):
            environment = {**os.environ, "RANK": rank, "LOCAL_RANK": rank}
            others.append(subprocess.Popen([sys.executable, *sys.argv], env=environment, stdin=subprocess.DEVNULL))
    torch.manual_seed(0)
    torch.set_num_threads(1)
    team = meet_team()
    connect(team, torch.device("cpu"))
    turns = Turns() if team.is_rank_0 else None
    step = make_step(arguments, team)
    while team.broadcast(turns.wait() if turns else None):
        began = time.perf_counter()
        for _ in range(BATCHES):
            step()
        team.max(0)  # the last one is done
        if turns:
            seconds = time.perf_counter() - began
            turns.report(images_per_second=BATCHES * arguments.batch / seconds, threads=torch.get_num_threads())
    team.leave()
    for other in others:
        other.wait()


def make_step(arguments: argparse.Namespace, team: Team) -> Callable[[], object]:
    """What trains on the next batch, loading included, as the trainer does."""
    config, rank, count = TrainConfig(imgsz=arguments.imgsz, batch=arguments.batch, workers=0), team.rank, team.size
    if arguments.apart:
        team = Team()
    optimization = replace(config.optimization, optimizer="SGD", nbs=arguments.batch, warmup_epochs=0)
    config = replace(config, optimization=optimization)
    loader = make_train_loader(load_index(read_data_yaml(arguments.data), "train"), config, rank=rank, world_size=count)
    batches = chain.from_iterable(loader.epoch(epoch) for epoch in range(1000))
    precision = Precision("cpu", getattr(torch, arguments.dtype))
    detector = registry.build("yolo11n", num_classes=80).train()
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    criterion, gains = build_criterion(detector.head, config)
    around = cpu.prepare_training(detector, criterion, precision, team.size)
    strategy = build_strategy(config, detector, team, precision, may_leave_out=False)
    engine = Engine(detector, criterion, gains, precision, config, len(loader), strategy, around)
    return lambda: bool(engine.step(next(batches)).send().read())


if __name__ == "__main__":
    main()
