"""What grows with the data: start-up, samples a second and memory from 500 to 100,000 images, costs up to 5,000 boxes.

    python benchmarks/scaling.py --reference-python PYTHON

Ours alone; each size is a process of its own, with a cache folder of its own. Images repeat by hard links of a few
hundred JPEGs of 640 x 480 pixels, each with a label file of its own; the same set once as a COCO JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
from side_by_side import HERE, Row, arguments_of, own_environment, write_results

WORK = Path("runs", "bench", "scaling")
SIZES = (500, 5_000, 20_000, 100_000)
BOXES = (1, 10, 100, 1_000, 5_000)
IMAGES, CLASSES = 300, 10
BASE = 5_000  # costs an image are compared with those at this size
UNITS = {
    "build": "s",
    "reopen": "s",
    "plan": "s",
    "first batch": "s",
    "memory": "GB",
    "worker": "MB",
    "samples": "samples/s",
}


def main() -> None:
    arguments = arguments_of(
        "Measure how costs grow.",
        most={"type": int, "default": SIZES[-1], "help": "images of the largest set"},
    )
    sizes = [size for size in SIZES if size <= arguments.most]
    found = {}
    for kind in ("yolo", "coco"):
        for size in sizes if kind == "yolo" else sizes[-1:]:
            data = many_images(size, kind)
            # What is known of the images stays for the COCO JSON, so that its index alone is measured.
            found[kind, size] = figures(arguments.reference_python, kind == "coco", "images", data)
            print(kind, size, json.dumps(found[kind, size]), flush=True)
    rows = []
    for (kind, size), new in found.items():
        base = found.get(("yolo", BASE), new)
        for name, unit in UNITS.items():
            grown = new[name] / base[name] / (size / BASE if unit == "s" else 1)
            note = f"{size:,} images, {kind}; {grown:.2f} of {BASE:,} images of YOLO txt" + ", an image" * (unit == "s")
            if name == "reopen" and size == SIZES[-1]:
                note += "; wanted: below 1 s"
            rows.append(Row(f"{name}, {size:,} {kind}", unit, [new[name]], [], None, note=note))
    for count, seconds in figures(arguments.reference_python, True, "copies", *map(str, sizes)).items():
        note = f"copies between {int(count):,} images for training and {int(count) // 10:,} for validation"
        rows.append(Row(f"copies, {int(count):,}", "s", [seconds], [], None, note=note))
    costs = figures(arguments.reference_python, True, "boxes", *map(str, BOXES))
    for name, by_count in costs.items():
        for count, seconds in by_count.items():
            note = f"{int(count):,} boxes an image; {seconds / by_count['1']:.3g} of 1 box an image"
            rows.append(Row(f"{name}, {int(count):,} boxes", "ms", [seconds * 1e3], [], None, note=note))
    write_results("scaling", rows, arguments.reference_python)


def figures(python: Path, keep_images: bool, *words: str | Path) -> dict:
    """What `sides/scaling_ours.py` prints for these words, in a new process with an empty cache."""
    cache = WORK / "cache"
    if not keep_images:
        shutil.rmtree(cache, ignore_errors=True)
    environment = {**own_environment(), "YOLOYARD_CACHE": str(cache.resolve())}
    done = subprocess.run(
        [python, HERE / "sides" / "scaling_ours.py", *words], env=environment, check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout.splitlines()[-1])


def many_images(size: int, kind: str) -> Path:
    """A data set of `size` images, made unless it is there: the folder's data.yaml, or coco.yaml."""
    folder = WORK / str(size)
    if not (folder / "coco.yaml").exists():
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("images", "labels"):
            (folder / name / "train").mkdir(parents=True)
        random = np.random.default_rng(0)
        coco: dict[str, list] = {"images": [], "annotations": []}
        coco["categories"] = [{"id": number, "name": f"class {number}"} for number in range(CLASSES)]
        images = small_images()
        for number in range(size):
            name = f"{number:06d}"
            os.link(images[number % IMAGES], folder / "images" / "train" / f"{name}.jpg")
            labels = random.integers(0, CLASSES, 7)
            sizes = random.uniform(0.02, 0.3, (7, 2))
            centres = random.uniform(0.2, 0.8, (7, 2))
            rows = [
                f"{label} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n"
                for label, (x, y), (w, h) in zip(labels, centres, sizes, strict=True)
            ]
            (folder / "labels" / "train" / f"{name}.txt").write_text("".join(rows))
            coco["images"].append({"id": number, "file_name": f"{name}.jpg", "height": 480, "width": 640})
            for label, (x, y), (w, h) in zip(labels.tolist(), centres.tolist(), sizes.tolist(), strict=True):
                box = [(x - w / 2) * 640, (y - h / 2) * 480, w * 640, h * 480]
                own = {"id": len(coco["annotations"]), "image_id": number, "category_id": label, "bbox": box}
                coco["annotations"].append(own)
        names = json.dumps([f"class {number}" for number in range(CLASSES)])
        (folder / "train.json").write_text(json.dumps(coco))
        (folder / "data.yaml").write_text(f"train: images/train\nval: images/train\nnames: {names}\n")
        split = "{images: images/train, labels: train.json}"
        (folder / "coco.yaml").write_text(f"train: {split}\nval: {split}\nnames: {names}\n")
    return folder / ("data.yaml" if kind == "yolo" else "coco.yaml")


def small_images() -> list[Path]:
    """A few hundred JPEGs, drawn with a fixed seed."""
    folder = WORK / "images"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    paths = []
    for number in range(IMAGES):
        path = folder / f"{number:03d}.jpg"
        coarse = random.integers(0, 256, (30, 40, 3), np.uint8)
        noise = random.integers(0, 24, (480, 640, 3), np.uint8)
        if not path.exists():
            cv2.imwrite(str(path), cv2.add(cv2.resize(coarse, (640, 480)), noise))
        paths.append(path)
    return paths


if __name__ == "__main__":
    main()
