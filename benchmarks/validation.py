"""Validation, whole: images loaded, predicted at 640 pixels, suppressed, and scored; ours against ultralytics.

    python benchmarks/validation.py --data trees/data.yaml --reference-python REFERENCE/bin/python

Both sides have the same weights: the reference trains a yolo11n on the trees for a few epochs (or `--weights` names one
of its .pt files), and we read that file.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
from side_by_side import HERE, Row, Side, arguments_of, compare, own_environment, write_results

IMAGES = 500
WORK = Path("runs", "bench", "validation")
GOAL = 0.5
BATCH = 16
SIDES = HERE / "sides"


def main() -> None:
    arguments = arguments_of(
        "Validate with both sides in turns.",
        data={"type": Path, "required": True, "help": "data.yaml written by examples/trees/prepare.py"},
        weights={"type": Path, "help": "a .pt file of the reference; default: it trains one"},
        images={"type": int, "default": IMAGES, "help": "how many images each turn validates"},
    )
    python = arguments.reference_python
    data = many_images(arguments.data.resolve(), WORK / f"data-{arguments.images}", arguments.images)
    weights = (arguments.weights or trained_weights(python, arguments.data.resolve())).resolve()
    rows = []
    # Theirs loads images by processes of its own in both, as it does by default; ours has none on a CPU.
    cases = [
        ("both float32, 2 threads", 2, "float32"),
        ("defaults: ours bf16 where native, all cores; theirs as they choose", None, "default"),
    ]
    for what, threads, precision in cases:
        number = str(threads or 0)
        words = ["--data", data, "--weights", weights, "--batch", str(BATCH), "--threads", number]
        ours = Side("validation ours", [SIDES / "validation_ours.py", *words, "--precision", precision], threads)
        theirs = Side("validation theirs", [SIDES / "validation_theirs.py", *words], threads)
        found = compare(python, [ours, theirs], arguments.repeats, warmups=0)  # a turn is long enough to warm up in
        mine, other = found[ours.name], found[theirs.name]
        figures = ", ".join(f"{name} {mine[-1][name]:.4f} : {other[-1][name]:.4f}" for name in ("map50_95", "map50"))
        note = f"{what}; yolo11n, {arguments.images} images, batch {BATCH}, conf 0.001, max_det 300; {figures}"
        seconds = [answer["seconds"] for answer in mine], [answer["seconds"] for answer in other]
        memory = [answer["gigabytes"] for answer in mine], [answer["gigabytes"] for answer in other]
        rows.append(Row("validation", "s", *seconds, goal=GOAL, note=note))
        rows.append(Row("its peak memory, main process", "GB", *memory, goal=GOAL, note=what))
    write_results("validation", rows, python)


def many_images(data: Path, folder: Path, count: int) -> Path:
    """A data set of `count` images of 640 x 640, each of four tiles of `data`, drawn with a fixed seed."""
    if not (folder / "labels" / "val" / f"{count - 1:04d}.txt").exists():
        shutil.rmtree(folder, ignore_errors=True)
        tiles = sorted(path for split in ("train", "val") for path in (data.parent / "images" / split).iterdir())
        for kind in ("images", "labels"):
            (folder / kind / "val").mkdir(parents=True)
        random = np.random.default_rng(0)
        for number in range(count):
            rows, canvas = [], np.zeros((640, 640, 3), np.uint8)
            for place, choice in enumerate(random.integers(0, len(tiles), 4)):
                tile, y, x = tiles[choice], *divmod(place, 2)
                canvas[320 * y : 320 * (y + 1), 320 * x : 320 * (x + 1)] = np.asarray(cv2.imread(str(tile)))
                labels = (data.parent / "labels" / tile.parent.name / tile.name).with_suffix(".txt")
                for line in labels.read_text(encoding="utf-8").splitlines() if labels.exists() else []:
                    label, *box = line.split()
                    centre_x, centre_y, width, height = map(float, box)
                    rows.append(f"{label} {(centre_x + x) / 2} {(centre_y + y) / 2} {width / 2} {height / 2}\n")
            cv2.imwrite(str(folder / "images" / "val" / f"{number:04d}.jpg"), canvas, [cv2.IMWRITE_JPEG_QUALITY, 95])
            (folder / "labels" / "val" / f"{number:04d}.txt").write_text("".join(rows), encoding="utf-8")
    lines = data.read_text(encoding="utf-8").splitlines()
    names = "\n".join(lines[lines.index("names:") :])
    text = f"path: {folder.resolve()}\ntrain: images/val\nval: images/val\n{names}\n"
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return (folder / "data.yaml").resolve()


def trained_weights(python: Path, data: Path) -> Path:
    """The reference's yolo11n after a few epochs on the trees, trained unless it is there."""
    file = WORK / "reference" / "run" / "weights" / "last.pt"
    if not file.exists():
        command: list[str | Path] = [
            python,
            SIDES / "validation_theirs.py",
            "--train",
            WORK.resolve() / "reference",
            "--data",
            data,
        ]
        subprocess.run(command, check=True, env=own_environment())
    return file


if __name__ == "__main__":
    main()
