"""What merging over seams makes of the boxes of an ideal detector, beside SAHI's, on drawn objects.

    python -m venv /tmp/sahi && /tmp/sahi/bin/pip install sahi
    python benchmarks/seams.py --sahi /tmp/sahi/bin/python

Objects of two classes are drawn in images of 2,048 pixels, alone or in contact. Each tile of 640 gives what it shows of
each if that is at least half of it, or of what a tile can hold. All merge the same boxes, SAHI by its defaults. Writes
results/seams.json and results/seams.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
SIZE, TILE, VISIBLE = 2048, 640, 0.5
NOISES = {"1.5 px": (1.5, 0.0), "1 px and 3 % of the visible part": (1.0, 0.03)}  # uniform; normal, deviation
OVERLAPS = (0.05, 0.2)
THEIRS = {"SAHI GREEDYNMM": "GreedyNMMPostprocess", "SAHI NMS": "NMSPostprocess"}  # both IOS, 0.5


def iou(boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU (n, m), and the share of each other box that lies in a box."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    shared = (np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - low).clip(0).prod(axis=2)
    areas, areas_too = ((each[:, 2:] - each[:, :2]).prod(axis=1) for each in (boxes, others))
    return shared / (areas[:, None] + areas_too - shared), shared / areas_too


def draw(random: np.random.Generator, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) and labels of an image: small, long, larger than a tile; half of them touch an earlier one.

    Those that tiles can't show whole, and those that no one could tell apart in them, are not drawn.
    """
    boxes, labels = np.zeros((0, 4)), np.zeros(0, int)
    while len(boxes) < 12:
        kinds = [(10, 80), (10, 80), (80, 500), (500, 1400)]
        size = np.array([random.uniform(*kinds[random.integers(4)]) for _ in range(2)])
        corner = random.uniform(0, SIZE - size)
        if len(boxes) and random.random() < 0.5:
            beside, axis = boxes[random.integers(len(boxes))], random.integers(2)
            size[1 - axis], corner = (beside[2:] - beside[:2])[1 - axis], beside[:2].copy()
            corner[axis] = beside[axis + 2] + random.uniform(-3, 3)
        box, label = np.concatenate((corner, corner + size)), random.integers(2)
        shown, found = shows(box[None], tiles)
        if box.max() > SIZE or not found.any() or (outer(shown[found]) != box).any():
            continue
        others = boxes[labels == label]
        if len(others) and (iou(box[None], others)[0].max() > 0.5 or alike(box, others, tiles)):
            continue
        boxes, labels = np.vstack((boxes, box)), np.append(labels, label)
    return boxes, labels


def shows(boxes: np.ndarray, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each tile shows of each box, (T, n, 4), and where that is enough to be found, (T, n)."""
    low, high = np.maximum(boxes[None, :, :2], tiles[:, None, :2]), np.minimum(boxes[None, :, 2:], tiles[:, None, 2:])
    area = (high - low).clip(0).prod(axis=2)
    return np.concatenate((low, high), axis=2), area >= VISIBLE * np.minimum(boxes[:, 2:] - boxes[:, :2], TILE).prod(
        axis=1
    )


def outer(boxes: np.ndarray) -> np.ndarray:
    """The box (4,) around all."""
    return np.concatenate((boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)))


def alike(box: np.ndarray, others: np.ndarray, tiles: np.ndarray) -> bool:
    """Whether two tiles share a region that shows the same of a box and of another one, within 10 pixels."""
    common, _ = shows(tiles, tiles)
    common = common.reshape(-1, 4)[(common[..., 2:] > common[..., :2]).all(axis=2).ravel()]
    parts, _ = shows(np.vstack((box, others)), common)
    there = np.asarray((parts[..., 2:] > parts[..., :2]).all(axis=2))
    near = np.asarray(np.abs(parts[:, :1] - parts[:, 1:]).max(axis=2) <= 10)
    return bool((near & there[:, :1] & there[:, 1:]).any())


def detections(
    random: np.random.Generator, boxes: np.ndarray, labels: np.ndarray, tiles: np.ndarray, noise: tuple[float, float]
) -> list[list[list[float]]]:
    """Of each tile rows of left, top, right, bottom, score and label, best first, in pixels of the image."""
    shown, found = shows(boxes, tiles)
    size = np.tile(shown[..., 2:] - shown[..., :2], 2)
    shown = shown + random.uniform(-noise[0], noise[0], shown.shape) + random.normal(0, noise[1], shown.shape) * size
    shown = np.clip(shown, np.tile(tiles[:, :2], 2)[:, None], np.tile(tiles[:, 2:], 2)[:, None])
    rows = []
    for parts, mine in zip(shown, found, strict=True):
        scores = random.uniform(0.3, 1, mine.sum())
        table = np.column_stack((parts[mine], scores, labels[mine]))
        rows.append(table[np.argsort(-scores)].tolist())
    return rows


def ours(cases: list[Any]) -> list[Any]:
    """Rows of boxes and labels of each case."""
    import torch

    from yoloyard.common.structures import Detections
    from yoloyard.evaluation.seams import merge_seams

    merged = []
    for case in cases:
        tables = [torch.tensor(rows).reshape(-1, 6).float() for rows in case["tiles_found"]]
        tiles = np.array(case["tiles"])
        corners = torch.from_numpy(tiles[:, [0, 1, 0, 1]])
        pairs = zip(tables, corners, strict=True)
        found = [Detections(each[:, :4] - corner, each[:, 4], each[:, 5].long()) for each, corner in pairs]
        done = merge_seams(found, tiles, 0.7, 300)
        merged.append(torch.cat((done.boxes, done.labels[:, None]), dim=1).tolist())
    return merged


def theirs(cases: list[Any], name: str) -> list[Any]:
    """Rows of boxes and labels of each case by a class of `sahi.postprocess.combine`."""
    from sahi.postprocess import combine
    from sahi.prediction import ObjectPrediction

    merge = getattr(combine, name)(match_threshold=0.5, match_metric="IOS", class_agnostic=False)
    merged = []
    for case in cases:
        rows = [row for tile in case["tiles_found"] for row in tile]
        found = [
            ObjectPrediction(bbox=row[:4], category_id=int(row[5]), category_name=str(row[5]), score=row[4])
            for row in rows
        ]
        merged.append([[*each.bbox.to_xyxy(), each.category.id] for each in merge(found)])
    return merged


def judge(cases: list[Any], merged: list[Any]) -> dict[str, float]:
    """Shares of the true boxes: found, joined with another, lost; boxes beyond them; mean IoU of those found."""
    total = found = joined = boxes = 0
    overlaps: list[float] = []
    for case, rows in zip(cases, merged, strict=True):
        truth, result = np.array(case["truth"]), np.array(rows).reshape(-1, 5)
        both, inside = iou(result[:, :4], truth[:, :4])
        both[result[:, 4, None] != truth[:, 4]] = inside[result[:, 4, None] != truth[:, 4]] = 0
        total, boxes = total + len(truth), boxes + len(result)
        free = np.ones(both.shape, bool)
        while (both * free).max(initial=0) > 0.5:
            row, column = np.unravel_index((both * free).argmax(), both.shape)
            overlaps.append(float(both[row, column]))
            free[row], free[:, column] = False, False
            inside[:, column] = 0
            found += 1
        joined += int((inside > 0.8).any(axis=0).sum())
    return {
        "found": found / total,
        "joined": joined / total,
        "lost": (total - found - joined) / total,
        "extra": (boxes - found) / total,
        "mean IoU": float(np.mean(overlaps)),
    }


def main() -> None:
    """Draw, merge in all ways and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sahi", help="a Python that has sahi; without it the table has our rows alone")
    parser.add_argument("--images", type=int, default=60, help="of each setting")
    parser.add_argument("--merge-by", help=argparse.SUPPRESS)  # in that Python: cases from stdin, boxes to stdout
    given = parser.parse_args()
    if given.merge_by:
        json.dump(theirs(json.load(sys.stdin), given.merge_by), sys.stdout)
        return
    from yoloyard.common.tiles import TileSpec, tile_boxes

    table: list[dict[str, Any]] = []
    for overlap in OVERLAPS:
        tiles = tile_boxes(SIZE, SIZE, TileSpec(TILE, overlap))
        for noise, sizes in NOISES.items():
            cases = []
            for seed in range(given.images):
                random = np.random.default_rng(seed)
                boxes, labels = draw(random, tiles)
                found = detections(random, boxes, labels, tiles, sizes)
                truth = np.column_stack((boxes, labels)).tolist()
                cases.append({"tiles": tiles.tolist(), "truth": truth, "tiles_found": found})
            start = time.process_time()
            merged = {"yoloyard": ours(cases)}
            milliseconds = 1000 * (time.process_time() - start) / len(cases)
            for name, kind in THEIRS.items() if given.sahi else ():
                command = [given.sahi, __file__, "--merge-by", kind]
                done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=True)
                merged[name] = json.loads(done.stdout)
            for name, rows in merged.items():
                setting = {"overlap": overlap, "noise": noise, "merged by": name, **judge(cases, rows)}
                table.append(setting | ({"ms an image": milliseconds} if name == "yoloyard" else {}))
                print(table[-1], flush=True)
    (RESULTS / "seams.json").write_text(json.dumps({"images": given.images, "rows": table}, indent=1) + "\n")
    head = ["overlap", "noise", "merged by", "found", "joined", "lost", "extra", "mean IoU"]
    lines = [
        f"{given.images} drawn images of {SIZE} pixels, of 12 objects each, in tiles of {TILE}; shares of the objects.",
        "",
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
    ]
    for row in table:
        shares = [f"{row[name]:.1%}" for name in head[3:7]]
        lines.append(
            f"| {' | '.join([str(row['overlap']), row['noise'], row['merged by'], *shares])} | {row['mean IoU']:.3f} |"
        )
    (RESULTS / "seams.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
