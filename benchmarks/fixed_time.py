"""What a training reaches in a fixed time: that which the reference needs for its epochs. One evaluator scores both.

    python benchmarks/fixed_time.py --reference-python PYTHON --demo demo/data.yaml --trees trees/data.yaml

The time is that of the reference's training call, without the start of its process. yoloyard gets it by `--time`, less
what the start and the report of a short probe take; its time in the note is that of the whole command. Both train from
scratch with the same threads. A run of the reference that is there already is not repeated (see trees.py).
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from side_by_side import LOGS, Row, arguments_of, write_results
from trees import ULTRALYTICS, predict_ours, run_once, score, start_process, words

RUNS = Path("runs", "bench", "fixed-time")
THREADS = 2
BATCH = {"demo": 8, "trees": 16}
MOST_EPOCHS = 60  # for which our recipe is chosen; fewer fit


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
        write_results("fixed_time", rows, arguments.reference_python, LOGS)  # what there is so far
    write_results("fixed_time", rows, arguments.reference_python)


def one_pair(arguments: argparse.Namespace, name: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Epochs, seconds and figures of our run and the reference's."""
    settings = argparse.Namespace(
        model="yolo11n",
        data=getattr(arguments, name).resolve(),
        reference_python=arguments.reference_python.absolute(),
        epochs=arguments.epochs,
        batch=BATCH[name],
        imgsz=320,
        threads=THREADS,
        work=RUNS / name,
    )
    theirs = run_once(settings, "ultralytics", seed)
    folder = settings.work / f"yoloyard-{seed}"
    probe = train(settings, seed, folder, {"epochs": 1})
    hours = (theirs["seconds"] - (probe["seconds"] - probe["in epochs"])) / 3600
    ours = train(settings, seed, folder, {"epochs": MOST_EPOCHS, "time": f"{hours:.6f}"})
    predictions = folder / "predictions.json"
    predict_ours(settings.data, folder / "run/weights/best.safetensors", ULTRALYTICS.iou, settings.imgsz, predictions)
    return ours | {"best": score(settings.data, predictions)}, theirs


def train(settings: argparse.Namespace, seed: int, folder: Path, more: dict[str, Any]) -> dict[str, Any]:
    """Run our command with the flags `more`; seconds of all of it and of its epochs with their validations."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    flags = {"model": settings.model, "data": settings.data, "seed": seed, "project": folder, "name": "run"}
    flags |= {"device": "cpu", "batch": settings.batch, "imgsz": settings.imgsz, **more}
    began = time.perf_counter()
    start_process(settings, ["-m", "yoloyard", "train", *words(flags)], folder)
    seconds = time.perf_counter() - began
    state = json.loads((folder / "run/checkpoints/last/state.json").read_text(encoding="utf-8"))
    return {"seconds": seconds, "in epochs": state["progress"]["seconds"], "epochs": state["progress"]["epoch"]}


if __name__ == "__main__":
    main()
