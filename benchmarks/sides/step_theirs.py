"""The reference's side of step.py: its trainer's steps, as its callbacks show them, each batch an update.

`--threads 0` leaves the number of threads to the trainer; `--dtype bfloat16` enters autocast around each step.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from turns import Turns
from ultralytics import YOLO, settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    turns = Turns()
    settings.update({"sync": False})
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=arguments.dtype == "bfloat16")
    began = 0.0

    def before(trainer: Any) -> None:
        nonlocal began
        if not turns.wait():
            sys.exit()
        if arguments.threads:
            torch.set_num_threads(arguments.threads)  # the trainer has chosen its own when it selected the device
        autocast.__enter__()
        began = time.perf_counter()

    def after(trainer: Any) -> None:
        seconds = time.perf_counter() - began
        autocast.__exit__(None, None, None)
        turns.report(seconds=seconds, threads=torch.get_num_threads())

    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_batch_start", before)
    model.add_callback("on_train_batch_end", after)
    options: dict[str, Any] = {"data": str(arguments.data.resolve()), "batch": 8, "nbs": 8, "imgsz": 640}
    options |= {"epochs": 100, "workers": 0, "device": "cpu", "pretrained": False, "optimizer": "SGD", "lr0": 0.01}
    options |= {"val": False, "plots": False, "save": False, "verbose": False, "exist_ok": True}
    model.train(project=str(Path("runs", "bench", "step").resolve()), name="theirs", **options)


if __name__ == "__main__":
    main()
