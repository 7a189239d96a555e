"""What augmentation for a line brings: each function alone, and the preset, compared with the defaults.

    yoloyard demo demo
    python benchmarks/augmentation.py --data demo=demo/data.yaml another=another/data.yaml

Every training has one thread, the same network and size, and sees equally many images; arms and seeds come in turns,
so that whatever is there when it is interrupted can be compared. Runs that are there already are not repeated.
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
from choosing import epochs_of, score, spread
from side_by_side import RESULTS, processor_name

from yoloyard.common.versions import versions

ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "inspection": {"preset": "inspection"},
    "inspection, light, noise": {"preset": "inspection", "light": 0.3, "noise": 0.02},
    "copy_paste": {"copy_paste": 0.5},
    "light": {"light": 0.3},
    "belt_blur": {"belt_blur": 4},
    "noise": {"noise": 0.02},
    "rotate90": {"rotate90": 90},
}
SETTINGS = {"imgsz": 192, "batch": 8, "workers": 0, "cache": "ram", "device": "cpu", "val_period": 1000}
FLAGS = ("--no-amp", "--no-tensorboard", "--exist-ok")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train with each augmentation alone, and with the preset.")
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=FILE", help="names and data.yaml files")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=2000, help="that a training sees, as whole epochs")
    parser.add_argument("--model", default="yolo11n")
    parser.add_argument("--weights", help="start from this weights file")
    parser.add_argument("--work", type=Path, default=Path("runs", "augmentation"), help="folder of the training runs")
    parser.add_argument("--no-results", action="store_true", help="print the table, write no file of results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sets = {name: Path(file) for name, _, file in (each.partition("=") for each in arguments.data)}
    rows = [
        run_once(arguments, name, data, arm, seed)
        for seed in arguments.seeds
        for name, data in sets.items()
        for arm in arguments.arms
    ]
    text = table(rows)
    print(text)
    if arguments.no_results:
        return
    shared = {name: getattr(arguments, name) for name in ("images", "model", "weights", "seeds")}
    results = {
        "settings": SETTINGS | shared | {"arms": {name: ARMS[name] for name in arguments.arms}},
        "machine": {"processor": processor_name(), "python": platform.python_version(), **versions()},
        "runs": rows,
    }
    name = f"augmentation-{date.today().isoformat()}"
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


def run_once(arguments: argparse.Namespace, name: str, data: Path, arm: str, seed: int) -> dict[str, Any]:
    """Train one arm once and score its last weights on the validation images."""
    folder = arguments.work / f"{name}-{arm}-{seed}"
    done = folder / "scored.json"
    if not done.is_file():
        values = (
            SETTINGS
            | ARMS[arm]
            | {"model": arguments.model, "data": data.resolve(), "epochs": epochs_of(arguments.images, data)}
        )
        values |= {"seed": seed, "project": folder.parent, "name": folder.name}
        values |= {"weights": arguments.weights} if arguments.weights else {}
        arguments.work.mkdir(parents=True, exist_ok=True)
        words = [f"{key}={value}" for key, value in values.items()]
        with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
            command = [sys.executable, "-m", "yoloyard", "train", *words, *FLAGS]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
        row = {"data": name, "arm": arm, "seed": seed, **score(data, folder, "on")}
        done.write_text(json.dumps(row), encoding="utf-8")
        print(f"{folder.name}: mAP50-95 {row['map50_95']:.4f}", flush=True)
    scored: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    return scored


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table for each data set: means over the seeds, in brackets the lowest and the highest.

    The last columns compare with the default, seed by seed: the mean difference, and in how many seeds it is better.
    """
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        lines += ["", f"### {data}", "", "| augmentation | mAP50-95 | mAP50 | recall of small | difference | better |"]
        lines.append(f"| --- |{' ---: |' * 5}")
        here = [row for row in rows if row["data"] == data]
        default = {row["seed"]: row["map50_95"] for row in here if row["arm"] == "default"}
        for arm in dict.fromkeys(row["arm"] for row in here):
            group = [row for row in here if row["arm"] == arm]
            cells = [spread([row[key] for row in group]) for key in ("map50_95", "map50", "small_recall")]
            apart = [row["map50_95"] - default[row["seed"]] for row in group if row["seed"] in default]
            cells += (
                [f"{statistics.mean(apart):+.3f}", f"{sum(each > 0 for each in apart)} of {len(apart)}"]
                if apart
                else ["", ""]
            )
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines).strip() + "\n"


if __name__ == "__main__":
    main()
