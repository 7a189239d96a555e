"""What a user sees at several overlaps of suppression and several confidences: F1, duplicates, lost neighbours.

    python benchmarks/showing.py crowd --out crowd
    yoloyard train --model yolo11n --data crowd/data.yaml --imgsz 192 --epochs 15 --batch 8 --name crowd
    python benchmarks/showing.py measure --data crowd/data.yaml --weights runs/crowd/weights/best.safetensors

`crowd` draws a set of piled discs, for the demo set and the trees have hardly any neighbours that overlap. `measure`
prints tables in Markdown, and the pair that training's own evaluation chooses from the detections of its figures.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

import yoloyard
from yoloyard.common.structures import Detections
from yoloyard.config.settings import EvaluationConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import Index, load_index
from yoloyard.data.loading.loader import make_val_loader
from yoloyard.evaluation.metrics import matching
from yoloyard.evaluation.metrics.coco import evaluate, gather_truth
from yoloyard.evaluation.metrics.matching import Found, Truth
from yoloyard.evaluation.metrics.showing import IOUS, MIN_CONF
from yoloyard.evaluation.validate import predict_all

CONFIDENCES = (0.1, 0.15, 0.25, 0.35, 0.5)
NEAR = 0.3  # a box belongs to the true box of its class that it overlaps most, if by so much
CROWDED = 0.3  # a true box has a neighbour if another one of its class overlaps it by so much
SIDE = 192  # pixels of a drawn image


@dataclass(frozen=True)
class Counts:
    """What is right and wrong above a confidence."""

    f1: float  # mean over classes
    duplicates: float  # boxes an image beyond the first one of a true box
    neighbours: float  # share of the true boxes with a neighbour that are found; nan where there are none


def count(found: Found, truth: Truth, num_classes: int, conf: float) -> Counts:
    """F1, duplicates and found neighbours of the boxes with a score of `conf` or more."""
    seen = found.scores >= conf
    pairs = matching.overlapping_pairs(found, truth)
    matched, ignored = matching.match_boxes(found, truth, pairs.where(seen[pairs.found]))
    right, false = seen & (matched >= 0), seen & (matched < 0) & ~ignored
    boxes = matching.boxes_per_class(truth, num_classes)
    hits, wrong = (np.bincount(found.labels[rows], minlength=num_classes) for rows in (right, false))
    f1 = (2 * hits / np.maximum(hits + wrong + boxes, 1))[boxes > 0].mean()
    duplicates, crowded = 0, np.zeros(len(truth.labels), bool)
    num_images = len(truth.starts) - 1
    for image in range(num_images):
        mine = np.arange(*found.starts[image : image + 2])[seen[slice(*found.starts[image : image + 2])]]
        true = np.arange(*truth.starts[image : image + 2])
        if len(true) == 0:
            continue
        overlaps = same_class_overlaps(found, mine, truth, true)
        owner = overlaps.argmax(axis=1)[overlaps.max(axis=1) > NEAR]
        duplicates += len(owner) - len(np.unique(owner))
        among = same_class_overlaps(truth, true, truth, true) - np.eye(len(true))
        crowded[true] = (among > CROWDED).any(axis=1)
    in_crowds = crowded[matched[right]].sum() / crowded.sum() if crowded.any() else float("nan")
    return Counts(float(f1), duplicates / num_images, float(in_crowds))


def same_class_overlaps(some: Found | Truth, rows: np.ndarray, others: Truth, columns: np.ndarray) -> np.ndarray:
    """IoU of boxes of one class, 0 of others, (rows, columns)."""
    overlaps = matching.pairwise_overlaps(some.boxes_xyxy[rows], others.boxes_xyxy[columns])
    return np.where(some.labels[rows][:, None] == others.labels[columns], overlaps, 0)


def measure(data: Path, weights: Path) -> None:
    """Print what `yoloyard.load` shows at each pair, and what is chosen."""
    index = load_index(read_data_yaml(data), "val")
    truth, num_classes = gather_truth(index), len(index.names)
    table: dict[tuple[float, float], Counts] = {}
    best = (0.0, 0.0, 0.0)
    curves = {}
    for iou in IOUS:
        model = yoloyard.load(weights, conf=MIN_CONF, iou=iou)
        found = matching.gather_found({image: model(index.paths[image]) for image in range(len(index))}, len(index))
        pairs = matching.overlapping_pairs(found, truth)
        matched, ignored = matching.match_boxes(found, truth, pairs)
        curves[iou] = matching.mean_over_classes(matching.curves(found, truth, matched, ignored, num_classes).f1)
        peak = curves[iou][matching.CONFIDENCES >= MIN_CONF].max()
        best = max(best, (peak, iou, matching.CONFIDENCES[curves[iou] == peak][-1]))
        table |= {(iou, conf): count(found, truth, num_classes, conf) for conf in CONFIDENCES}
    chosen = evaluate(index, scored(weights, index)).showing
    here = curves[chosen.iou][round(1000 * chosen.conf)]
    print(f"{len(index)} images, {len(truth.labels)} boxes.")
    print("Best F1 {:.3f} at IoU {}, confidence {:.3f}.".format(*best))
    print(f"Chosen by the training: IoU {chosen.iou}, confidence {chosen.conf:.3f}, with F1 {here:.3f}.")
    for what in ("f1", "duplicates", "neighbours"):
        print(f"\n| {what} | " + " | ".join(f"{conf}" for conf in CONFIDENCES) + " |\n" + "| --- " * 6 + "|")
        for iou in IOUS:
            print(f"| IoU {iou} | " + " | ".join(f"{getattr(table[iou, c], what):.3f}" for c in CONFIDENCES) + " |")


def scored(weights: Path, index: Index) -> dict[int, Detections]:
    """The detections that a training makes for its figures."""
    model = yoloyard.load(weights)
    loader = make_val_loader(index, model.imgsz, 16, model.stride)
    return predict_all(model.network, loader, EvaluationConfig())


def draw_crowd(out: Path) -> None:
    """Images with piles of up to four discs, each moved from the one below it by 0.2 to 0.9 of its width."""
    random = np.random.default_rng(0)
    for split, images in (("train", 240), ("val", 60)):
        for kind in ("images", "labels"):
            (out / kind / split).mkdir(parents=True)
        for number in range(images):
            image = cv2.GaussianBlur(random.integers(40, 160, (SIDE, SIDE, 3), np.uint8), (0, 0), 3)
            rows = []
            for _ in range(random.integers(2, 6)):
                radius, angle = random.uniform(11, 20), random.uniform(0, 2 * np.pi)
                centre = random.uniform(20, SIDE - 20, 2)
                for _ in range(random.integers(1, 5)):
                    if (np.abs(centre - SIDE / 2) > SIDE / 2 - radius).any():
                        break
                    colour = random.integers(60, 250, 3).tolist()
                    middle = tuple(np.rint(centre).astype(int).tolist())
                    cv2.circle(image, middle, round(radius), colour, -1, cv2.LINE_AA)
                    cv2.circle(image, middle, round(radius), (20, 20, 20), 1, cv2.LINE_AA)
                    rows.append("0 {:.5f} {:.5f} {:.5f} {:.5f}\n".format(*(centre / SIDE), *[2 * radius / SIDE] * 2))
                    centre = centre + 2 * radius * random.uniform(0.2, 0.9) * np.array([np.cos(angle), np.sin(angle)])
            cv2.imwrite(str(out / "images" / split / f"{number:03d}.png"), image)
            (out / "labels" / split / f"{number:03d}.txt").write_text("".join(rows), encoding="utf-8")
    (out / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [disc]\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("crowd").add_argument("--out", type=Path, default=Path("crowd"))
    measuring = commands.add_parser("measure")
    measuring.add_argument("--data", type=Path, required=True)
    measuring.add_argument("--weights", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "crowd":
        draw_crowd(arguments.out)
    else:
        measure(arguments.data, arguments.weights)


if __name__ == "__main__":
    main()
