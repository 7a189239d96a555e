"""What helps small objects? A level of stride 4 and the Wasserstein distance, on two sets after equally many images.

    yoloyard demo demo
    python examples/trees/prepare.py deepforest-2.1.0-py3-none-any.whl --out trees
    python benchmarks/small_objects.py --demo demo/data.yaml --trees trees/data.yaml

Variants: `yolo11n`; `yolo11n-p2`; `nwd`, yolo11n whose points are assigned by a mean of CIoU and the normalised
Gaussian Wasserstein distance (Wang et al., arXiv 2110.13389); `nwd-box`, whose box loss is of that mean, too. The last
two are changed here and are no part of yoloyard. All begin with random weights at 192 pixels, so that most boxes are
small for the network. Each training has one thread. Runs that are there already are not repeated.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from choosing import epochs_of, small_recall, spread
from side_by_side import RESULTS, processor_name
from torch import Tensor

import yoloyard
from yoloyard.common.boxes import xyxy_to_cxcywh
from yoloyard.common.versions import versions
from yoloyard.cpu import points_in_boxes
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import load_index
from yoloyard.evaluation.metrics.coco import evaluate

VARIANTS = ("yolo11n", "yolo11n-p2", "nwd", "nwd-box")
SETTINGS = {"imgsz": 192, "batch": 8, "workers": 0, "cache": "ram", "device": "cpu", "val_period": 1000}
SETTINGS |= {"amp": False, "tensorboard": False, "exist_ok": True}
SHARE = 0.5  # of the Wasserstein distance in the overlap
FIGURES = ("map50_95", "map50", "map_small", "small_recall")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare ways to find small objects after equally many images.")
    parser.add_argument("--demo", type=Path, help="its data.yaml; left out if this is not given")
    parser.add_argument("--trees", type=Path, help="data.yaml written by examples/trees/prepare.py")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=2000, help="that a training sees, as whole epochs")
    parser.add_argument("--constant", type=float, default=12.8, help="pixels that the distance is divided by")
    parser.add_argument("--work", type=Path, default=Path("runs", "small_objects"), help="folder of the training runs")
    parser.add_argument("--train", help=argparse.SUPPRESS)  # a variant and its settings as JSON: one training, here
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.train:
        train(**json.loads(arguments.train))
        return
    rows = [
        run_once(arguments, name, data, variant, seed)
        for seed in arguments.seeds
        for name in ("demo", "trees")
        if (data := getattr(arguments, name))
        for variant in arguments.variants
    ]
    results = {
        "settings": SETTINGS | {"images": arguments.images, "seeds": arguments.seeds, "constant": arguments.constant},
        "machine": {"processor": processor_name(), "python": platform.python_version(), **versions()},
        "runs": rows,
    }
    name, text = f"small-objects-{date.today().isoformat()}", table(rows)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def run_once(arguments: argparse.Namespace, name: str, data: Path, variant: str, seed: int) -> dict[str, Any]:
    """Train one variant once, in a process of its own, and score it."""
    folder = arguments.work / f"{name}-{variant}-{arguments.images}-{seed}"
    done = folder / "scored.json"
    if not done.is_file():
        epochs = epochs_of(arguments.images, data)
        settings = SETTINGS | {"data": str(data.resolve()), "epochs": epochs, "seed": seed}
        settings |= {"project": str(folder.parent), "name": folder.name}
        given = json.dumps({"variant": variant, "constant": arguments.constant, "settings": settings})
        arguments.work.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            command = [sys.executable, __file__, "--train", given]
            subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
        row = {"data": name, "variant": variant, "seed": seed, "epochs": epochs, **score(data, folder)}
        done.write_text(json.dumps(row), encoding="utf-8")
        print(f"{folder.name}: " + ", ".join(f"{key} {row[key]:.4f}" for key in FIGURES), flush=True)
    scored: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    return scored


def train(variant: str, constant: float, settings: Mapping[str, Any]) -> None:
    """One training."""
    is_changed = variant.startswith("nwd")
    calls = use_wasserstein(constant, in_loss=variant == "nwd-box") if is_changed else []
    yoloyard.train(model="yolo11n" if is_changed else variant, **settings)
    if is_changed and not calls:
        sys.exit("the changed assignment was never asked")


def use_wasserstein(constant: float, in_loss: bool) -> list[int]:
    """Change the overlap of assignment, and of the box loss `in_loss`, on a CPU; the list grows with each call."""
    assign_inside, complete_iou = points_in_boxes.assign_inside, points_in_boxes.complete_iou
    changed: Any = points_in_boxes
    calls: list[int] = []
    strides = torch.ones(0, 1)

    def mixed(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
        near = wasserstein(boxes_xyxy, others_xyxy, constant)
        return (1 - SHARE) * complete_iou(boxes_xyxy, others_xyxy) + SHARE * near

    def of_loss(predicted: Tensor, target: Tensor) -> Tensor:
        return mixed(predicted * strides, target * strides)  # from cells to pixels

    def assign(inside: points_in_boxes.Inside, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal strides
        changed.complete_iou = mixed
        found = assign_inside(inside, *rest)
        changed.complete_iou = of_loss if in_loss else complete_iou
        strides = inside.strides[found[0]]
        calls.append(len(strides))
        return found

    changed.assign_inside = assign
    return calls


def wasserstein(boxes_xyxy: Tensor, others_xyxy: Tensor, constant: float) -> Tensor:
    """The normalised distance of boxes as Gaussians, (..., 4) pixels to (...), 1 for equal ones. Wang et al., eq. 7."""
    centre, size = (xyxy_to_cxcywh(boxes_xyxy) - xyxy_to_cxcywh(others_xyxy)).split(2, dim=-1)
    square = centre.square().sum(dim=-1) + size.square().sum(dim=-1) / 4
    return torch.exp(-(square + 1e-7).sqrt() / constant)


def score(data: Path, folder: Path) -> dict[str, float]:
    """Figures of the last weights of a run on the validation images."""
    index = load_index(read_data_yaml(data), "val")
    model = yoloyard.load(folder / "weights" / "last.safetensors", device="cpu", conf=0.001, max_det=300)
    found = {number: model(path) for number, path in enumerate(index.paths)}
    figures = evaluate(index, found).figures()
    return {key: figures[key] for key in FIGURES[:-1]} | {"small_recall": small_recall(index, found)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table for each set: means over the seeds, lowest and highest; differences from yolo11n by seeds."""
    heads = ("variant", "mAP50-95", "mAP50", "mAP of small", "recall of small", "mAP50-95 less that of yolo11n")
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        lines += ["", f"### {data}", "", f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
        of_data = {(row["variant"], row["seed"]): row for row in rows if row["data"] == data}
        for variant in dict.fromkeys(variant for variant, _ in of_data):
            own = {seed: row for (name, seed), row in of_data.items() if name == variant}
            cells = [spread([row[key] for row in own.values()]) for key in FIGURES]
            base = {seed: of_data.get((VARIANTS[0], seed)) for seed in own}
            more = [row["map50_95"] - other["map50_95"] for seed, row in own.items() if (other := base[seed])]
            cells.append(f"{statistics.mean(more):+.3f} ({min(more):+.3f} .. {max(more):+.3f})" if more else "")
            lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines).strip() + "\n"


if __name__ == "__main__":
    main()
