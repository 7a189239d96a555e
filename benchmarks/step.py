"""A training step on a CPU beside the reference's: yolo11n, batch 8, 640 pixels, each batch an update.

`python benchmarks/step.py --reference-python P` writes `results/step.json`. Both sides load the same generated images
by their own loaders; a step begins when its batch is there. What the hardware could do at most is measured too.
bfloat16 is left out where the processor doesn't multiply it: emulated, a product of matrices takes minutes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from pathlib import Path

import cv2
import numpy as np
from side_by_side import HERE, Row, Side, arguments_of, compare, native_bfloat16, own_environment, write_results

DATA = Path("runs", "bench", "step", "data")
IMAGES, BOXES, CLASSES = 64, 10, 80
GOALS = {("float32", "float32"): 0.95, ("bfloat16", "bfloat16"): 0.85, ("bfloat16", "float32"): 0.55}  # ours, theirs


def main() -> None:
    arguments = arguments_of(__doc__ or "")
    python, repeats = arguments.reference_python, arguments.repeats
    make_data()
    cores = len(os.sched_getaffinity(0))
    dtypes = ["float32", "bfloat16"] if native_bfloat16() else ["float32"]
    rows = []
    ours, theirs = side("ours", dtypes[-1]), side("theirs")
    what = "step, defaults of each"
    rows.append(row(what, compare(python, [ours, theirs], repeats), ours, theirs, 0.40))
    sides = {(who, dtype): side(who, dtype, cores) for who in ("ours", "theirs") for dtype in dtypes}
    answers = compare(python, list(sides.values()), repeats, warmups=2)
    for (own, other), goal in GOALS.items():
        if own in dtypes:
            rows.append(row("step, equal threads", answers, sides["ours", own], sides["theirs", other], goal))
    for dtype in dtypes:
        bare = side("ours", dtype, cores, "--bare")
        pair = compare(python, [sides["ours", dtype], bare], 2 * repeats, warmups=2)
        what = "our whole step : bare forward and backward"
        rows.append(row(what, pair, sides["ours", dtype], bare, 1.08))
    rows += limits(python, cores, dtypes, answers, sides)
    write_results("step", rows, python)


def side(who: str, dtype: str = "float32", threads: int = 0, *more: str) -> Side:
    """A program of `sides/`; no threads: as many as it chooses."""
    command: list[str | Path] = [
        HERE / "sides" / f"step_{who}.py",
        "--data",
        DATA / "data.yaml",
        "--threads",
        str(threads),
    ]
    name = " ".join(("step", who, dtype, str(threads), *more))
    return Side(name, [*command, "--dtype", dtype, *more], threads or None)


def row(what: str, answers: dict[str, list[dict[str, float]]], ours: Side, theirs: Side, goal: float) -> Row:
    """A row of the seconds that two sides have reported."""
    a, b = answers[ours.name], answers[theirs.name]
    note = f"{ours.name} with {a[0]['threads']} threads : {theirs.name} with {b[0]['threads']} threads"
    return Row(what, "s", [turn["seconds"] for turn in a], [turn["seconds"] for turn in b], goal, note=note)


def limits(
    python: Path,
    threads: int,
    dtypes: list[str],
    answers: dict[str, list[dict[str, float]]],
    sides: dict[tuple[str, str], Side],
) -> list[Row]:
    """The operations a second of the step beside the most that a product of matrices and a convolution reach here."""
    command = [str(python), str(HERE / "sides" / "step_peak.py"), str(threads), *dtypes]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=own_environment())
    peaks = json.loads(done.stdout)
    print(json.dumps(peaks), flush=True)
    rows = []
    for dtype in dtypes:
        seconds = statistics.median(answer["seconds"] for answer in answers[sides["ours", dtype].name])
        reached = peaks["gigaflops_of_step"] / seconds
        for kind in ("matmul", "convolution"):
            peak = peaks[f"{kind} {dtype} {threads}"]
            note = f"{threads} threads; the step's convolutions, 3 x forward = {peaks['gigaflops_of_step']:.0f} GFLOP"
            one = peaks[f"{kind} {dtype} 1"]
            note += f"; one thread reaches {one:.0f}"
            what = f"share of the peak of a {dtype} {kind}"
            rows.append(Row(what, "GFLOP/s", [reached], [peak], None, more_is_better=True, note=note))
    return rows


def make_data() -> None:
    """Images of blurred noise with filled rectangles, the same in every run."""
    names = "".join(f"  {number}: class{number}\n" for number in range(CLASSES))
    DATA.mkdir(parents=True, exist_ok=True)
    text = f"path: {DATA.resolve()}\ntrain: images/train\nval: images/train\nnames:\n{names}"
    (DATA / "data.yaml").write_text(text, encoding="utf-8")
    if (DATA / "labels" / "train" / f"{IMAGES - 1:03}.txt").exists():
        return
    generator = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (DATA / kind / "train").mkdir(parents=True, exist_ok=True)
    for number in range(IMAGES):
        noise = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        image = cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
        lines = []
        for _ in range(BOXES):
            width, height = generator.uniform(0.03, 0.4, 2)
            x, y = generator.uniform((width / 2, height / 2), (1 - width / 2, 1 - height / 2))
            corner = (round((x - width / 2) * 640), round((y - height / 2) * 480))
            opposite = (round((x + width / 2) * 640), round((y + height / 2) * 480))
            cv2.rectangle(image, corner, opposite, generator.integers(0, 256, 3).tolist(), -1)
            lines.append(f"{generator.integers(CLASSES)} {x:.6f} {y:.6f} {width:.6f} {height:.6f}\n")
        cv2.imwrite(str(DATA / "images" / "train" / f"{number:03}.jpg"), image)
        (DATA / "labels" / "train" / f"{number:03}.txt").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
