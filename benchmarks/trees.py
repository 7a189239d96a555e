"""Side by side on real images: `yoloyard train` and another trainer, both from scratch, scored by one evaluator.

    python examples/trees/prepare.py deepforest-2.1.0-py3-none-any.whl --out trees
    python benchmarks/trees.py --model yolo11n --data trees/data.yaml --reference-python REFERENCE/bin/python

The other trainer, the reference, is ultralytics for yolo11n and yolo12n, and the package yolov5 for yolov5n. Both
sides train in the reference's environment: the same interpreter, torch, processor cores and thread count. The
reference is a black box: its process gets the data and hands back predictions in JSON.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from side_by_side import processor_name

import yoloyard
from yoloyard.common.structures import Detections
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import load_index
from yoloyard.evaluation.metrics.coco import evaluate
from yoloyard.training.listeners.results import read_records

HERE = Path(__file__).resolve().parent
OURS = ("yoloyard", "yoloyard --no-amp")
KINDS = ("best", "last")
CONF, MAX_DET = 0.001, 300
PASSES = 0.3  # the mAP50 from which on a side counts as trained


@dataclass(frozen=True)
class Reference:
    """What a model is compared with: the name of that side, its script, and the published overlap of suppression."""

    side: str
    script: str
    iou: float


ULTRALYTICS = Reference("ultralytics", "reference_trees.py", iou=0.7)
YOLOV5 = Reference("yolov5", "reference_trees_yolov5.py", iou=0.6)
REFERENCES = {"yolo11n": ULTRALYTICS, "yolo12n": ULTRALYTICS, "yolov5n": YOLOV5}


def main() -> None:
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if hasattr(os, "sched_setaffinity"):  # what is started from here inherits the cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    runs = [run_once(arguments, side, seed) for seed in arguments.seeds for side in arguments.sides]
    reference = REFERENCES[arguments.model]
    names = ("model", "seeds", "epochs", "batch", "imgsz", "threads")
    results = {
        "settings": {name: getattr(arguments, name) for name in names} | {"iou": reference.iou},
        "machine": {"processor": processor_name(), "cores": arguments.threads, "python": platform.python_version()},
        "runs": runs,
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    name = f"trees-{arguments.model}-{date.today().isoformat()}"
    (arguments.results / f"{name}.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    table = table_of(runs, arguments.sides, reference.side)
    (arguments.results / f"{name}.md").write_text(table, encoding="utf-8")
    print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train both sides on the trees and compare.")
    parser.add_argument("--model", choices=REFERENCES, default="yolo11n")
    parser.add_argument("--data", type=Path, required=True, help="data.yaml written by examples/trees/prepare.py")
    parser.add_argument("--reference-python", type=Path, required=True, help="interpreter that has the reference")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sides", nargs="+", help="default: the reference and yoloyard")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--threads", type=int, default=2, help="processor cores and threads of each side")
    parser.add_argument("--work", type=Path, help="folder of the training runs, default runs/benchmark-trees/MODEL")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the figures")
    arguments = parser.parse_args()
    arguments.work = arguments.work or Path("runs", "benchmark-trees", arguments.model)
    possible = (REFERENCES[arguments.model].side, *OURS)
    arguments.sides = arguments.sides or list(possible[:2])
    if unknown := [side for side in arguments.sides if side not in possible]:
        parser.error(f"--sides: {unknown[0]!r} is none of {', '.join(possible)}")
    return arguments


def run_once(arguments: argparse.Namespace, side: str, seed: int) -> dict[str, Any]:
    """Train and score one side with one seed; a run that is already in the work folder is not repeated."""
    folder = arguments.work / f"{side.replace(' --', '-')}-{seed}"
    done = folder / "scored.json"
    asked = {
        "model": arguments.model,
        "side": side,
        "seed": seed,
        "epochs": arguments.epochs,
        "batch": arguments.batch,
        "imgsz": arguments.imgsz,
        "threads": arguments.threads,
    }
    if done.is_file():
        run = json.loads(done.read_text(encoding="utf-8"))
        if {name: run.get(name) for name in asked} != asked:
            raise SystemExit(f"{folder} was run with other settings: remove it, or name another --work folder")
        return run
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted attempt has left
    folder.mkdir(parents=True)
    print(f"{side}, seed {seed}: training, output in {folder / 'log.txt'}", flush=True)
    train = train_ours if side in OURS else train_reference
    run = {**asked, **train(arguments, side, seed, folder)}
    for kind in KINDS:
        run[kind] = score(arguments.data, folder / f"predictions-{kind}.json")
    done.write_text(json.dumps(run), encoding="utf-8")
    print(f"{side}, seed {seed}: {run['seconds']:.0f} s, mAP50 {run['best']['map50']:.3f}", flush=True)
    return run


def train_reference(arguments: argparse.Namespace, side: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train the reference. The time is that of its own training call."""
    reference = REFERENCES[arguments.model]
    flags = {"data": arguments.data, "out": folder, "threads": arguments.threads, "seed": seed}
    flags |= {name: getattr(arguments, name) for name in ("model", "epochs", "batch", "imgsz")}
    flags |= {"conf": CONF, "iou": reference.iou, "max-det": MAX_DET}
    command = [HERE / reference.script, *words(flags)]
    start_process(arguments, command, folder)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {
        "seconds": result["seconds"],
        "versions": result["versions"],
        "passes_at_epoch": first_above(result["map50"]),
    }


def train_ours(arguments: argparse.Namespace, side: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train with yoloyard. The time is that of the whole command, from start to report."""
    flags = {"model": arguments.model, "data": arguments.data.resolve(), "seed": seed, "project": folder, "name": "run"}
    flags |= {"device": "cpu"} | {name: getattr(arguments, name) for name in ("epochs", "batch", "imgsz")}
    entry = ["-m", "yoloyard", "train", *words(flags), *side.split()[1:]]
    began = time.perf_counter()
    start_process(arguments, entry, folder)
    seconds = time.perf_counter() - began
    run = folder / "run"
    for kind in KINDS:
        weights = run / "weights" / f"{kind}.safetensors"
        iou = REFERENCES[arguments.model].iou
        predict_ours(arguments.data, weights, iou, arguments.imgsz, folder / f"predictions-{kind}.json")
    epochs = read_records(run)
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    return {
        "seconds": seconds,
        "versions": environment["versions"],
        "precision": environment["precision"],
        "passes_at_epoch": first_above([epoch["val/map50"] for epoch in epochs]),
    }


def predict_ours(data: Path, weights: Path, iou: float, imgsz: int, out: Path) -> None:
    """Write what `weights` find in the validation images to `out`, in the form that the references use."""
    model = yoloyard.load(weights, device="cpu", imgsz=imgsz, conf=CONF, iou=iou, max_det=MAX_DET)
    found = {}
    for image in sorted((data.parent / "images" / "val").iterdir()):
        detections = model(image)
        found[image.name] = {
            "boxes_xyxy": detections.boxes.tolist(),
            "scores": detections.scores.tolist(),
            "labels": detections.labels.tolist(),
        }
    out.write_text(json.dumps(found), encoding="utf-8")


def start_process(arguments: argparse.Namespace, command: Sequence[object], folder: Path) -> None:
    """Run `command` with the reference's interpreter and wait for it. Raises SystemExit if it fails."""
    threads = str(arguments.threads)
    environment = os.environ | {
        "PYTHONPATH": str(HERE.parent / "src"),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "YOLO_OFFLINE": "true",
        "YOLO_CONFIG_DIR": str(arguments.work.resolve()),
        "YOLOV5_CONFIG_DIR": str(arguments.work.resolve()),
    }
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        finished = subprocess.run(
            [str(word) for word in (arguments.reference_python, *command)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if finished.returncode:
        raise SystemExit(f"failed with exit code {finished.returncode}: see {folder / 'log.txt'}")


def score(data: Path, predictions: Path) -> dict[str, float]:
    """COCO figures of one side's predictions, boxes in pixels of the original images."""
    index = load_index(read_data_yaml(data), "val")
    by_name = json.loads(predictions.read_text(encoding="utf-8"))
    found = {}
    for image_id, path in enumerate(index.paths):
        boxes = by_name[Path(path).name]
        found[image_id] = Detections(
            boxes=torch.tensor(boxes["boxes_xyxy"]).reshape(-1, 4),
            scores=torch.tensor(boxes["scores"]),
            labels=torch.tensor(boxes["labels"], dtype=torch.int64),
        )
    return evaluate(index, found, max_det=MAX_DET).figures()


def table_of(runs: Sequence[dict[str, Any]], sides: Sequence[str], reference: str) -> str:
    """A markdown table: means over seeds, lowest and highest in brackets, times as parts of the side `reference`'s."""
    lines = ["| side | mAP50 best | mAP50-95 best | mAP50 last | mAP50-95 last | mAP50 > 0.3 at epoch | training, s |"]
    lines.append("| --- " * 7 + "|")
    of_side = {side: [run for run in runs if run["side"] == side] for side in sides}
    for side, own in of_side.items():
        cells = [spread([run[kind][name] for run in own], 3) for kind in KINDS for name in ("map50", "map50_95")]
        passed = [run["passes_at_epoch"] for run in own if run["passes_at_epoch"] is not None]
        cells.append(spread(passed, 0) if len(passed) == len(own) else f"{len(passed)} of {len(own)} runs")
        cells.append(spread([run["seconds"] for run in own], 0))
        lines.append(f"| {side} | {' | '.join(cells)} |")
    if reference in of_side:
        for side, own in of_side.items():
            if side != reference:
                ratio = mean_seconds(own) / mean_seconds(of_side[reference])
                lines.append(f"\nTime of `{side}` / time of `{reference}`: {ratio:.2f}")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], digits: int) -> str:
    low, mean, high = min(values), statistics.fmean(values), max(values)
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def mean_seconds(runs: Sequence[dict[str, Any]]) -> float:
    return statistics.fmean(run["seconds"] for run in runs)


def first_above(map50: Sequence[float]) -> int | None:
    """The first epoch, from 1, whose own figure passes the mark."""
    return next((epoch for epoch, value in enumerate(map50, start=1) if value > PASSES), None)


def words(flags: dict[str, object]) -> list[str]:
    return [str(part) for name, value in flags.items() for part in (f"--{name}", value)]


if __name__ == "__main__":
    main()
