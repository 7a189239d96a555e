"""A side of not_alone.py: each turn chooses its threads as a training does, trains on some batches and reports both."""

import argparse
import time
from pathlib import Path

import torch
from step_ours import BATCH, make_steps  # type: ignore[import-not-found]  # beside this file
from turns import Turns

from yoloyard.common.cores import Threads
from yoloyard.common.device import Precision

BATCHES = 4
IMGSZ = 320


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--dtype")
    arguments = parser.parse_args()
    turns = Turns()
    torch.manual_seed(0)
    steps = make_steps(arguments.data, Precision("cpu", getattr(torch, arguments.dtype)), bare=False, imgsz=IMGSZ)
    while turns.wait():
        threads = Threads("cpu")
        threads.choose(wait=True)
        began = time.perf_counter()
        for _ in range(BATCHES):
            steps()
        seconds = time.perf_counter() - began
        turns.report(images_per_second=BATCHES * BATCH / seconds, threads=threads.number)
        threads.restore()


if __name__ == "__main__":
    main()
