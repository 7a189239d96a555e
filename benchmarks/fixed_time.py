"""What a training reaches in a fixed time: that which the reference needs for its epochs. One evaluator scores both.

    python benchmarks/fixed_time.py --reference-python PYTHON --demo demo/data.yaml --trees trees/data.yaml

The time is that of the reference's training call, without the start of its process. yoloyard gets as many epochs as a
short trial says that fit, start, validations and report included; its time is that of the whole command. Both from
scratch, with the same threads; runs that are there already are not repeated (see trees.py).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from side_by_side import Row, arguments_of, write_results
from trees import run_once

RUNS = Path("runs", "bench", "fixed-time")
THREADS = 2
BATCH = {"demo": 8, "trees": 16}
TRIAL_EPOCHS = 3


def main() -> None:
    a_file: dict[str, Any] = {"type": Path, "help": "its data.yaml; left out if this is not given"}
    arguments = arguments_of(
        "Compare what both reach in the time that the reference needs.",
        demo=a_file,
        trees=a_file,
        epochs={"type": int, "default": 20, "help": "of the reference"},
        seeds={"type": int, "nargs": "+", "default": [0, 1]},
    )
    rows = []
    for name in BATCH:
        if getattr(arguments, name) is None:
            continue
        pairs = [one_pair(arguments, name, seed) for seed in arguments.seeds]
        ours, theirs = ([pair[side]["best"]["map50_95"] for pair in pairs] for side in (0, 1))
        times = "; ".join(
            f"{our['epochs']} epochs in {our['seconds']:.0f} s : {their['epochs']} in {their['seconds']:.0f} s"
            for our, their in pairs
        )
        note = f"yolo11n, 320 pixels, batch {BATCH[name]}, {THREADS} threads, seeds {arguments.seeds}: {times}"
        what = f"{name}: mAP50-95 in the reference's time"
        rows.append(Row(what, "", ours, theirs, goal=1.0, more_is_better=True, note=note))
        write_results("fixed_time", rows, arguments.reference_python)


def one_pair(arguments: argparse.Namespace, name: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our run and the reference's, as trees.py keeps them."""
    settings = argparse.Namespace(
        model="yolo11n",
        data=getattr(arguments, name),
        reference_python=arguments.reference_python.absolute(),
        epochs=arguments.epochs,
        batch=BATCH[name],
        imgsz=320,
        threads=THREADS,
        work=RUNS / name,
    )
    theirs = run_once(settings, "ultralytics", seed)
    settings.epochs, settings.work = TRIAL_EPOCHS, RUNS / f"{name}-trial"
    trial = run_once(settings, "yoloyard", seed)
    state = settings.work / f"yoloyard-{seed}" / "run" / "checkpoints" / "last" / "state.json"
    in_epochs = json.loads(state.read_text(encoding="utf-8"))["progress"]["seconds"]
    fitting = (theirs["seconds"] - (trial["seconds"] - in_epochs)) / (in_epochs / TRIAL_EPOCHS)
    settings.epochs, settings.work = max(1, int(fitting)), RUNS / name
    return run_once(settings, "yoloyard", seed), theirs


if __name__ == "__main__":
    main()
