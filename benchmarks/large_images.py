"""Small objects in large images: whole images scaled down, or tiles; and SAHI's merging of the same tiles.

    python benchmarks/large_images.py draw big
    python benchmarks/large_images.py measure --data drawn=big/data.yaml craters=craters/data.yaml \
        --start demo.safetensors --reference-python sahi/bin/python

All trainings start from the same weights, have one thread and about the same processor time: what an epoch costs is
measured first, and the epochs are those that fit into `--seconds`. Whole images are seen at 640 pixels. Each arm then
predicts the validation images in a process of its own. Runs and predictions that are there already are not repeated.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from choosing import above, spread, train
from side_by_side import HERE, RESULTS, processor_name

from yoloyard.common.structures import Detections
from yoloyard.common.versions import versions
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import Index, load_index
from yoloyard.data.pixels.decode import encode_jpeg
from yoloyard.demo.drawing import NAMES, draw_image
from yoloyard.demo.write import JPEG_QUALITY
from yoloyard.evaluation.metrics import matching
from yoloyard.evaluation.metrics.coco import evaluate, gather_truth

MODEL = "yolo11n"
IMGSZ = 640
WHOLE, TILES = "whole image scaled down", "tiles"
SAHI = {f"tiles merged by SAHI's {merging}": merging for merging in ("GREEDYNMM", "NMS")}
POSITIVE = 0.5  # share of tiles with a box in an epoch
SIZES = {
    "below 8 px": (0, 8),
    "8 to 16": (8, 16),
    "16 to 32": (16, 32),
    "32 and more": (32, np.inf),
}  # sqrt of the area
MAX_DET = 1000
SECONDS_OF_COST = 120  # about that long is measured

DRAWN_IMAGES = {"train": 6, "val": 4}
DRAWN_SIZE, DRAWN_SCALE, MOST_DEFECTS = 4096, 0.6, 80  # sides of 8 to 66 pixels
SURFACES = ("steel", "aluminium", "green board", "blue board")


def main() -> None:
    parser = argparse.ArgumentParser(description="Small objects in large images: whole, in tiles, and SAHI's merging.")
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw", help=f"write a drawn set of {DRAWN_SIZE} x {DRAWN_SIZE} pixels")
    drawing.add_argument("folder", type=Path, help="new folder")
    measuring = commands.add_parser("measure", help="train and compare")
    measuring.add_argument("--data", nargs="+", required=True, metavar="NAME=DATA.YAML", help="the data sets")
    measuring.add_argument("--start", type=Path, required=True, help="weights file that every training starts from")
    measuring.add_argument("--reference-python", type=Path, help="interpreter of an environment with yoloyard and sahi")
    measuring.add_argument("--tile", type=int, default=640, help="side of a tile in pixels, and what the network sees")
    measuring.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    measuring.add_argument("--seconds", type=float, default=60, help="of one processor core, for each training")
    measuring.add_argument("--work", type=Path, default=Path("runs", "large-images"), help="folder of the runs")
    arguments = parser.parse_args()
    if arguments.command == "draw":
        draw(arguments.folder)
    else:
        measure(arguments)


def draw(folder: Path) -> None:
    """Write the drawn set: defects as in `yoloyard demo`, but small ones in large images."""
    for seed, (split, count) in enumerate(DRAWN_IMAGES.items()):
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for number in range(count):
            rng = np.random.default_rng([seed, number])
            surface = SURFACES[number % len(SURFACES)]
            image = draw_image(rng, surface, True, DRAWN_SIZE, DRAWN_SCALE, MOST_DEFECTS)
            boxes = image.boxes_xyxy / DRAWN_SIZE
            rows = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
            pairs = zip(image.labels, rows, strict=True)
            lines = "".join("{} {:.7f} {:.7f} {:.7f} {:.7f}\n".format(label, *row) for label, row in pairs)
            (images / f"{number:02d}.jpg").write_bytes(encode_jpeg(image.pixels, JPEG_QUALITY))
            (labels / f"{number:02d}.txt").write_text(lines, encoding="utf-8")
        print(f"{split}: {count} images", flush=True)
    text = "train: images/train\nval: images/val\nnames: [" + ", ".join(NAMES) + "]\n"
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def measure(arguments: argparse.Namespace) -> None:
    """Train and predict what isn't there yet, and write the table."""
    torch.set_num_threads(1)
    sets = {name: Path(data) for name, _, data in (pair.partition("=") for pair in arguments.data)}
    rows = [
        row
        for seed in arguments.seeds
        for name, data in sets.items()
        for arm in (WHOLE, TILES)
        for row in run_once(arguments, name, data, arm, seed)
    ]
    results = {
        "settings": {
            "model": MODEL,
            "imgsz": IMGSZ,
            "tile": arguments.tile,
            "seconds": arguments.seconds,
            "seeds": arguments.seeds,
        },
        "machine": {"processor": processor_name(), "python": platform.python_version(), **versions()},
        "runs": rows,
    }
    text = table(rows)
    name = f"large-images-{'-'.join(sets)}-{date.today().isoformat()}"
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def run_once(arguments: argparse.Namespace, name: str, data: Path, arm: str, seed: int) -> list[dict[str, Any]]:
    """Train one arm once and score it; more rows where SAHI merges the tiles, too."""
    folder = arguments.work / f"{name}-{short(arguments, arm)}-{seed}"
    done = folder / "seconds.json"
    if not done.is_file():
        epochs = max(1, round(arguments.seconds / seconds_per_epoch(arguments, name, data, arm)))
        seconds = train(folder, data, MODEL, epochs, seed, **settings(arguments, arm))
        done.write_text(json.dumps({"epochs": epochs, "training_seconds": seconds}), encoding="utf-8")
    trained = json.loads(done.read_text(encoding="utf-8"))
    index = load_index(read_data_yaml(data), "val")
    weights = folder / "weights" / "last.safetensors"
    rows = []
    for predictor in (arm, *SAHI) if arm == TILES and arguments.reference_python else (arm,):
        row = {"data": name, "arm": predictor, "seed": seed, **trained, **score(arguments, index, weights, predictor)}
        print(f"{folder.name}, {predictor}: {json.dumps(row)}", flush=True)
        rows.append(row)
    return rows


def short(arguments: argparse.Namespace, arm: str) -> str:
    """The arm in names of folders."""
    return "whole" if arm == WHOLE else f"tiles-{arguments.tile}"


def settings(arguments: argparse.Namespace, arm: str) -> dict[str, Any]:
    """What the training of an arm is told besides `choosing.SETTINGS`."""
    tile = arguments.tile
    seen = {"imgsz": IMGSZ} if arm == WHOLE else {"imgsz": tile, "tile": tile, "tile_positive": POSITIVE}
    return {"weights": arguments.start.resolve(), **seen}


def seconds_per_epoch(arguments: argparse.Namespace, name: str, data: Path, arm: str) -> float:
    """Processor seconds of an epoch after the first, in which caches fill: of more, the shorter they are."""
    file = arguments.work / f"cost-{name}-{short(arguments, arm)}.json"
    if not file.is_file():

        def trained(epochs: int) -> float:
            return train(file.with_suffix(""), data, MODEL, epochs, 0, **settings(arguments, arm))

        few = trained(1)
        more = max(1, round(SECONDS_OF_COST / few))
        file.write_text(json.dumps({"seconds_per_epoch": (trained(1 + more) - few) / more}), encoding="utf-8")
        print(f"{name}, {arm}: {file.read_text()}", flush=True)
    seconds: float = json.loads(file.read_text(encoding="utf-8"))["seconds_per_epoch"]
    return seconds


def score(arguments: argparse.Namespace, index: Index, weights: Path, predictor: str) -> dict[str, float | None]:
    """Figures of the weights on the validation images, processor seconds an image and gigabytes of its process."""
    merging = SAHI.get(predictor)
    file = weights.parent.parent / (f"sahi-{merging}.json" if merging else "found.json")
    if not file.is_file():
        python = arguments.reference_python if merging else sys.executable
        command = [python, HERE / "large_images_predict.py", weights, file, "--max-det", str(MAX_DET)]
        command += ["--slices", str(arguments.tile), "--merging", merging] if merging else []
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*command, "--images", *index.paths], env=environment, check=True)
    kept = json.loads(file.read_text(encoding="utf-8"))
    found = {
        number: Detections(
            torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)
        )
        for number, (boxes, scores, labels) in enumerate(kept["found"])
    }
    metrics = evaluate(index, found, max_det=MAX_DET)
    shown = {number: above(each, metrics.confidence) for number, each in found.items()}
    return {
        "map50_95": metrics.map50_95,
        "map50": metrics.map50,
        **{f"recall {name}": value for name, value in recall_by_size(index, shown).items()},
        "precision": metrics.precision,
        "duplicates": metrics.duplicates,
        "seconds": statistics.median(kept["seconds"]),
        "gigabytes": kept["gigabytes"],
    }


def recall_by_size(index: Index, found: Mapping[int, Detections]) -> dict[str, float | None]:
    """Share of the true boxes of each of SIZES that are found at IoU 0.5; None where there are none."""
    truth, boxes = gather_truth(index), matching.gather_found(found, len(index))
    matched, _ = matching.match_boxes(boxes, truth, matching.overlapping_pairs(boxes, truth))
    hit = np.isin(np.arange(len(truth.labels)), matched)
    sides = np.sqrt(truth.areas)
    asked = {name: ~truth.ignore & (sides >= low) & (sides < high) for name, (low, high) in SIZES.items()}
    return {name: float(hit[rows].mean()) if rows.any() else None for name, rows in asked.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table for each data set: means over the seeds, and in brackets the lowest and the highest."""
    recalls = [f"recall {name}" for name in SIZES]
    spreads = {"mAP50-95": "map50_95", "mAP50": "map50", **{name: name for name in recalls}}
    means = {"precision": "precision", "duplicates an image": "duplicates", "s an image": "seconds"}
    means |= {"GB": "gigabytes", "training, s": "training_seconds"}
    heads = ("arm", *spreads, *means)
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        lines += ["", f"### {data}", "", f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
        for arm in dict.fromkeys(row["arm"] for row in rows):
            group = [row for row in rows if (row["data"], row["arm"]) == (data, arm)]
            cells = ["" if None in values else spread(values) for values in columns(group, spreads.values())]
            cells += [f"{statistics.mean(values):.2f}" for values in columns(group, means.values())]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines).strip() + "\n"


def columns(rows: Sequence[Mapping[str, Any]], keys: Iterable[str]) -> list[list[Any]]:
    """The values of each key in all rows."""
    return [[row[key] for row in rows] for key in keys]


if __name__ == "__main__":
    main()
