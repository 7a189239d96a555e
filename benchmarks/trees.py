"""Side by side on real pictures: `yoloyard train` and ultralytics, both from scratch, scored by one evaluator.

    python examples/trees/prepare.py deepforest-2.1.0-py3-none-any.whl --out trees
    python benchmarks/trees.py --data trees/data.yaml --reference-python REFERENCE/bin/python

Both sides train in the reference's environment: the same interpreter, torch, processor cores and thread count. The
reference is a black box: its process gets the data and hands back predictions in JSON.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

import yoloyard
from yoloyard.data.data_yaml import read_data_yaml
from yoloyard.data.index import load_index
from yoloyard.evaluation.coco import evaluate
from yoloyard.structures import Detections

HERE = Path(__file__).resolve().parent
SIDES = ("ultralytics", "yoloyard", "yoloyard --no-amp")
KINDS = ("best", "last")
CONF, IOU, MAX_DET = 0.001, 0.7, 300
PASSES = 0.3  # the mAP50 from which on a side counts as trained


def main() -> None:
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if hasattr(os, "sched_setaffinity"):  # what is started from here inherits the cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    runs = [run_once(arguments, side, seed) for seed in arguments.seeds for side in arguments.sides]
    results = {
        "settings": {name: getattr(arguments, name) for name in ("seeds", "epochs", "batch", "imgsz", "threads")},
        "machine": {"processor": processor_name(), "cores": arguments.threads, "python": platform.python_version()},
        "runs": runs,
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    name = f"trees-{date.today().isoformat()}"
    (arguments.results / f"{name}.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    table = table_of(runs, arguments.sides)
    (arguments.results / f"{name}.md").write_text(table, encoding="utf-8")
    print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train both sides on the trees and compare.")
    parser.add_argument("--data", type=Path, required=True, help="data.yaml written by examples/trees/prepare.py")
    parser.add_argument("--reference-python", type=Path, required=True, help="interpreter that has ultralytics 8.4")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES[:2]))
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--threads", type=int, default=2, help="processor cores and threads of each side")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-trees"), help="folder of the training runs")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the figures")
    return parser.parse_args()


def run_once(arguments: argparse.Namespace, side: str, seed: int) -> dict[str, Any]:
    """Train and score one side with one seed; a run that is already in the work folder is not repeated."""
    folder = arguments.work / f"{side.replace(' --', '-')}-{seed}"
    done = folder / "scored.json"
    asked = {
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
    train = train_reference if side == "ultralytics" else train_ours
    run = {**asked, **train(arguments, side, seed, folder)}
    for kind in KINDS:
        run[kind] = score(arguments.data, folder / f"predictions-{kind}.json")
    done.write_text(json.dumps(run), encoding="utf-8")
    print(f"{side}, seed {seed}: {run['seconds']:.0f} s, mAP50 {run['best']['map50']:.3f}", flush=True)
    return run


def train_reference(arguments: argparse.Namespace, side: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train ultralytics. The time is that of its `train` call."""
    flags = {"data": arguments.data, "out": folder, "threads": arguments.threads, "seed": seed}
    flags |= {name: getattr(arguments, name) for name in ("epochs", "batch", "imgsz")}
    command = [HERE / "reference_trees.py", *words(flags)]
    start_process(arguments, command, folder)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    map50 = [epoch["metrics"]["metrics/mAP50(B)"] for epoch in result["history"]]
    return {"seconds": result["seconds"], "versions": result["versions"], "passes_at_epoch": first_above(map50)}


def train_ours(arguments: argparse.Namespace, side: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train with yoloyard. The time is that of the whole command, from start to report."""
    flags = {"model": "yolo11n", "data": arguments.data.resolve(), "seed": seed, "project": folder, "name": "run"}
    flags |= {"device": "cpu"} | {name: getattr(arguments, name) for name in ("epochs", "batch", "imgsz")}
    entry = ["-m", "yoloyard", "train", *words(flags), *side.split()[1:]]
    began = time.perf_counter()
    start_process(arguments, entry, folder)
    seconds = time.perf_counter() - began
    run = folder / "run"
    images = sorted((arguments.data.parent / "images" / "val").iterdir())
    for kind in KINDS:
        model = yoloyard.load(
            run / "weights" / f"{kind}.safetensors", device="cpu", conf=CONF, iou=IOU, max_det=MAX_DET
        )
        found = {}
        for image in images:
            detections = model(image)
            found[image.name] = {
                "boxes_xyxy": detections.boxes.tolist(),
                "scores": detections.scores.tolist(),
                "labels": detections.labels.tolist(),
            }
        (folder / f"predictions-{kind}.json").write_text(json.dumps(found), encoding="utf-8")
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    return {
        "seconds": seconds,
        "versions": environment["versions"],
        "precision": environment["precision"],
        "passes_at_epoch": first_above([epoch["val/map50"] for epoch in epochs]),
    }


def start_process(arguments: argparse.Namespace, command: Sequence[object], folder: Path) -> None:
    """Run `command` with the reference's interpreter and wait for it. Raises SystemExit if it fails."""
    threads = str(arguments.threads)
    environment = os.environ | {
        "PYTHONPATH": str(HERE.parent / "src"),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "YOLO_OFFLINE": "true",
        "YOLO_CONFIG_DIR": str(arguments.work.resolve()),
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
    """COCO figures of one side's predictions, boxes in pixels of the original pictures."""
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


def table_of(runs: Sequence[dict[str, Any]], sides: Sequence[str]) -> str:
    """A markdown table: means over seeds, lowest and highest in brackets, times as parts of the reference's."""
    lines = ["| side | mAP50 best | mAP50-95 best | mAP50 last | mAP50-95 last | mAP50 > 0.3 at epoch | training, s |"]
    lines.append("| --- " * 7 + "|")
    of_side = {side: [run for run in runs if run["side"] == side] for side in sides}
    for side, own in of_side.items():
        cells = [spread([run[kind][name] for run in own], 3) for kind in KINDS for name in ("map50", "map50_95")]
        passed = [run["passes_at_epoch"] for run in own if run["passes_at_epoch"] is not None]
        cells.append(spread(passed, 0) if len(passed) == len(own) else f"{len(passed)} of {len(own)} runs")
        cells.append(spread([run["seconds"] for run in own], 0))
        lines.append(f"| {side} | {' | '.join(cells)} |")
    if reference := of_side.get(SIDES[0]):
        for side, own in of_side.items():
            if side != SIDES[0]:
                ratio = mean_seconds(own) / mean_seconds(reference)
                lines.append(f"\nTime of `{side}` / time of `{SIDES[0]}`: {ratio:.2f}")
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


def processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
