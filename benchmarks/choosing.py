"""Which family? Each from scratch on the demo set and on the trees, with the same processor time, three seeds.

    yoloyard demo demo
    python examples/trees/prepare.py deepforest-2.1.0-py3-none-any.whl --out trees
    python benchmarks/choosing.py --demo demo/data.yaml --trees trees/data.yaml

Each training has one thread. What an epoch of a model takes is measured first, in seconds of the processor, which
other programs on the host hardly change; the epochs of a run are those that fit into `--seconds`. So the figures can
be repeated on a host that is not idle. Latencies are taken at the end, image by image in turns: then it should be idle.
Runs that are there already are not repeated.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import RESULTS, processor_name

import yoloyard
from yoloyard.common.boxes import pairwise_iou
from yoloyard.common.device import Precision
from yoloyard.common.structures import Detections
from yoloyard.common.versions import versions
from yoloyard.config.settings import EvaluationConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import Index, load_index
from yoloyard.evaluation.metrics import matching
from yoloyard.evaluation.metrics.coco import evaluate, gather_truth
from yoloyard.evaluation.validate import detect
from yoloyard.models import registry
from yoloyard.runtimes.network import Network

MODELS = ("yolov5n", "yolov8n", "yolov9t", "yolo11n", "yolo12n", "yolov13n", "yolo26n")
ANOTHER_HEAD = "yolo26n without suppression"  # the other branches of the runs of yolo26n
SETTINGS = {"imgsz": 192, "batch": 8, "workers": 0, "cache": "ram", "device": "cpu", "val_period": 1000}
FLAGS = ("--no-amp", "--no-tensorboard", "--exist-ok")
SMALL = 32.0**2  # square pixels, as in COCO
DUPLICATE_IOU = 0.8
SHOWN = 0.25  # lowest score of the boxes whose duplicates are counted
LATENCY_IMGSZ, LATENCY_TURNS = 640, 30


def main() -> None:
    parser = argparse.ArgumentParser(description="Train each family with the same processor time and compare.")
    parser.add_argument("--demo", type=Path, help="its data.yaml; left out if this is not given")
    parser.add_argument("--trees", type=Path, help="data.yaml written by examples/trees/prepare.py")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=120, help="of one processor core, for each training")
    parser.add_argument("--optimizers", nargs="+", default=["auto"], help="auto, or others to compare with it")
    parser.add_argument("--work", type=Path, default=Path("runs", "choosing"), help="folder of the training runs")
    parser.add_argument("--train-only", action="store_true", help="neither latencies nor a table")
    arguments = parser.parse_args()
    sets = {name: data for name in ("demo", "trees") if (data := getattr(arguments, name))}
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for name, data in sets.items():
            for model in arguments.models:
                for optimizer in arguments.optimizers:
                    rows += run_once(arguments, name, data, model, seed, optimizer)
    if arguments.train_only:
        return
    milliseconds = latencies(arguments.models)
    results = {
        "settings": SETTINGS | {"seconds": arguments.seconds, "seeds": arguments.seeds},
        "machine": {"processor": processor_name(), "python": platform.python_version(), **versions()},
        "runs": rows,
        "milliseconds": milliseconds,
    }
    text = table(rows, milliseconds)
    name = f"choosing-{date.today().isoformat()}"
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def run_once(
    arguments: argparse.Namespace, name: str, data: Path, model: str, seed: int, optimizer: str
) -> list[dict[str, Any]]:
    """Train one model once and score it; two rows where it has a head without suppression, too."""
    folder = arguments.work / f"{name}-{model}-{optimizer}-{seed}"
    done = folder / "scored.json"
    if not done.is_file():
        epochs = epochs_of(arguments.seconds / seconds_per_image(arguments, model), data)
        seconds = train(folder, data, model, epochs, seed, "--optimizer", optimizer)
        rows = []
        for suppression in ("on", "off") if model == "yolo26n" else ("on",):
            row = {"data": name, "model": model, "optimizer": optimizer, "seed": seed, "epochs": epochs}
            row |= {"suppression": suppression, "seconds": seconds, **score(data, folder, suppression)}
            rows.append(row)
        done.write_text(json.dumps(rows), encoding="utf-8")
        print(f"{folder.name}: {epochs} epochs, {seconds:.0f} s, mAP50-95 {rows[0]['map50_95']:.4f}", flush=True)
    scored: list[dict[str, Any]] = json.loads(done.read_text(encoding="utf-8"))
    return scored


def seconds_per_image(arguments: argparse.Namespace, model: str) -> float:
    """Processor seconds that the training takes for an image: of three epochs less those of one."""
    file, data = arguments.work / f"cost-{model}.json", arguments.trees or arguments.demo
    if not file.is_file():
        folder = arguments.work / f"cost-{model}"
        few, many = (train(folder, data, model, epochs, 0) for epochs in (1, 3))
        images = len(load_index(read_data_yaml(data), "train"))
        file.write_text(json.dumps({"seconds_per_image": (many - few) / (2 * images)}), encoding="utf-8")
        print(f"{model}: {file.read_text()}", flush=True)
    cost: float = json.loads(file.read_text(encoding="utf-8"))["seconds_per_image"]
    return cost


def epochs_of(images: float, data: Path) -> int:
    """The number of epochs in which a training sees about so many images."""
    return max(1, round(images / len(load_index(read_data_yaml(data), "train"))))


def train(folder: Path, data: Path, model: str, epochs: int, seed: int, *more: str, **settings: Any) -> float:
    """Processor seconds of one training, whose run folder is `folder`; `settings` come before SETTINGS."""
    flags = SETTINGS | settings | {"model": model, "data": data.resolve(), "epochs": epochs, "seed": seed}
    flags |= {"project": folder.parent, "name": folder.name}
    words = [f"{key}={value}" for key, value in flags.items()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "yoloyard", "train", *words, *FLAGS, *more]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def score(data: Path, folder: Path, suppression: str) -> dict[str, float]:
    """Figures of the last weights of a run on the validation images."""
    index = load_index(read_data_yaml(data), "val")
    chosen = {} if suppression == "on" else {"suppression": suppression}
    weights = folder / "weights" / "last.safetensors"
    model = yoloyard.load(weights, device="cpu", conf=0.001, max_det=300, **chosen)
    found = {number: model(path) for number, path in enumerate(index.paths)}
    figures = evaluate(index, found).figures()
    shown = {number: above(each, SHOWN) for number, each in found.items()}
    return {
        "map50_95": figures["map50_95"],
        "map50": figures["map50"],
        "small_recall": small_recall(index, found),
        "recall_shown": recall(index, shown),
        "duplicates": sum(map(duplicates, shown.values())) / len(index),
    }


def above(found: Detections, score: float) -> Detections:
    """The detections with at least this score."""
    return first(found, int((found.scores >= score).sum()))


def first(found: Detections, count: int) -> Detections:
    """The `count` detections with the best scores."""
    return Detections(found.boxes[:count], found.scores[:count], found.labels[:count])


def recall(index: Index, found: Mapping[int, Detections], small: bool = False) -> float:
    """Share of the true boxes, or of the small ones, that are found at IoU 0.5, whatever the score."""
    truth, boxes = gather_truth(index), matching.gather_found(found, len(index))
    matched, _ = matching.match_boxes(boxes, truth, matching.overlapping_pairs(boxes, truth))
    hit = np.zeros(len(truth.labels), bool)
    hit[matched[matched >= 0]] = True
    asked = ~truth.ignore & ((truth.areas < SMALL) | (not small))
    return float(hit[asked].mean()) if asked.any() else float("nan")


def small_recall(index: Index, found: Mapping[int, Detections]) -> float:
    """`recall` of small boxes among the 100 best detections of each image."""
    best = {
        number: Detections(each.boxes[:100], each.scores[:100], each.labels[:100]) for number, each in found.items()
    }
    return recall(index, best, small=True)


def duplicates(found: Detections) -> int:
    """Boxes that overlap a better one of their class by more than DUPLICATE_IOU."""
    overlaps = pairwise_iou(found.boxes.float(), found.boxes.float()).triu(diagonal=1)
    same = found.labels[:, None] == found.labels
    return int(((overlaps > DUPLICATE_IOU) & same).any(dim=0).sum())


def latencies(models: Sequence[str]) -> dict[str, float]:
    """Median milliseconds from a square image to boxes, with all cores and fresh weights, the models in turns."""
    torch.set_num_threads(os.cpu_count() or 1)
    networks = {}
    for name in models:
        torch.manual_seed(0)
        paths = {name: None, ANOTHER_HEAD: False} if name == "yolo26n" else {name: None}
        for path, suppression in paths.items():
            detector = registry.build(name, 80)
            networks[path] = Network(detector, torch.device("cpu"), Precision("cpu", torch.float32), {}, suppression)
    image = torch.randint(0, 256, (1, 3, LATENCY_IMGSZ, LATENCY_IMGSZ), dtype=torch.uint8)
    image = image.contiguous(memory_format=torch.channels_last)
    taken: dict[str, list[float]] = {name: [] for name in networks}
    for turn in range(-3, LATENCY_TURNS):
        for name, network in networks.items():
            began = time.perf_counter()
            detect(network, image, [None], EvaluationConfig(conf=SHOWN), multi_label=False)
            if turn >= 0:
                taken[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(times) for name, times in taken.items()}


def table(rows: Sequence[Mapping[str, Any]], milliseconds: Mapping[str, float]) -> str:
    """A Markdown table for each data set: means over the seeds, and in brackets the lowest and the highest."""
    heads = ("model", "epochs", "mAP50-95", "mAP50", "recall of small", "recall at 0.25", "duplicates an image", "ms")
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        lines += ["", f"### {data}", "", f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            if row["data"] == data:
                name = row["model"] if row["suppression"] == "on" else ANOTHER_HEAD
                name += "" if row["optimizer"] == "auto" else f", {row['optimizer']}"
                groups.setdefault(name, []).append(row)
        for name, group in groups.items():
            cells = [spread([row[key] for row in group]) for key in ("map50_95", "map50", "small_recall")]
            cells += [f"{statistics.mean(row[key] for row in group):.3f}" for key in ("recall_shown", "duplicates")]
            latency = milliseconds.get(name.partition(",")[0])
            cells.append("" if latency is None else f"{latency:.0f}")
            lines.append(f"| {name} | {group[0]['epochs']} | {' | '.join(cells)} |")
    return "\n".join(lines).strip() + "\n"


def spread(values: Sequence[float]) -> str:
    """Mean, lowest and highest."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} .. {max(values):.3f})"


if __name__ == "__main__":
    main()
