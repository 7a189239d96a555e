"""The reference's side of validation.py, by its public API; with --train it trains the weights that both sides use."""

import argparse
import resource
import time
from pathlib import Path

import torch
from turns import Turns
from ultralytics import YOLO, settings

IMGSZ = 640
EPOCHS, TRAINED_AT = 20, 320  # pixels; enough to find trees


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--train", type=Path)
    arguments = parser.parse_args()
    settings.update({"sync": False})
    common = {"data": str(arguments.data), "device": "cpu", "plots": False, "verbose": False, "exist_ok": True}
    if arguments.train:
        YOLO("yolo11n.yaml").train(
            epochs=EPOCHS,
            imgsz=TRAINED_AT,
            batch=8,
            nbs=8,
            pretrained=False,
            project=str(arguments.train),
            name="run",
            **common,
        )
        return
    turns = Turns()
    model = YOLO(arguments.weights)

    def set_threads(_: object) -> None:
        if arguments.threads:
            torch.set_num_threads(arguments.threads)  # the reference chooses its own count when it selects the device

    for event in ("on_val_start", "on_val_batch_start"):
        model.add_callback(event, set_threads)
    while turns.wait():
        began = time.perf_counter()
        found = model.val(
            imgsz=IMGSZ,
            batch=arguments.batch,
            conf=0.001,
            iou=0.7,
            max_det=300,
            project=str(Path("runs", "bench", "validation", "theirs").resolve()),
            name="val",
            **common,
        )
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        turns.report(seconds=seconds, map50_95=float(found.box.map), map50=float(found.box.map50), gigabytes=peak)


if __name__ == "__main__":
    main()
