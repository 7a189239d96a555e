"""Boxes by an exported ONNX file, as JSON: `python client.py best.onnx IMAGE [IMAGE ...]`.

Needs numpy, opencv-python-headless and onnxruntime. preprocess.json beside it says how images and boxes are treated.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np


def read(path: str) -> np.ndarray:
    """An image file as uint8 RGB (H, W, 3): EXIF orientation applied, transparent pixels composed on grey."""
    image, stored = cv2.imread(path, cv2.IMREAD_COLOR), cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if image is None or stored.dtype != np.uint8:
        raise SystemExit(f"{path} is no image of 8 bits")
    if stored.ndim == 3 and stored.shape[2] == 4:
        alpha = stored[..., 3:].astype(np.uint16)
        image = ((stored[..., :3] * alpha + 114 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return image[..., ::-1]


def letterbox(image: np.ndarray, imgsz: int, shape: list[int] | None, multiple: int) -> tuple[np.ndarray, ...]:
    """The input, float32 (1, 3, H, W), and the scale and padding, x and y, that lead to its pixels."""
    size = np.array(image.shape[:2])
    new = np.maximum(1, np.round(size * min(imgsz / size)).astype(int))
    padded = np.array(shape or new + (imgsz - new) % multiple)
    new = np.maximum(1, np.round(size * min(padded / size)).astype(int))
    before = (padded - new) // 2
    image = cv2.resize(image, new[::-1].tolist(), interpolation=cv2.INTER_LINEAR)
    image = np.pad(image, [*zip(before, padded - new - before, strict=True), (0, 0)], constant_values=114)
    pixels = image.transpose(2, 0, 1)[None].astype(np.float32) / 255
    return pixels, (new / size)[::-1].astype(np.float32), before[::-1].astype(np.float32)


def suppress(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, conf: float, iou: float, max_det: int) -> list:
    """The rows to keep, best first: of boxes of one class that overlap by more than `iou`, the one with the best score.

    Boxes (n, 4) left, top, right, bottom, scores (n,) and labels (n,).
    """
    order, kept = np.argsort(-scores, kind="stable")[: (scores > conf).sum()][:30_000], []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    while len(order) and len(kept) < max_det:
        best, order = order[0], order[1:]
        sides = np.minimum(boxes[best, 2:], boxes[order, 2:]) - np.maximum(boxes[best, :2], boxes[order, :2])
        shared = sides.clip(0).prod(axis=1)
        falls = shared / (areas[best] + areas[order] - shared).clip(np.float32(1e-30)) > iou
        order = order[~(falls & (labels[order] == labels[best]))]
        kept.append(best)
    return kept


def main(file: str, *paths: str) -> None:
    """Print the boxes of all images."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it is read at the import
    import onnxruntime

    facts: dict[str, Any] = json.loads(Path(__file__).with_name("preprocess.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    rows = []
    for path in paths:
        image = read(path)
        pixels, scale, pad = letterbox(image, facts["imgsz"], facts["shape"], facts["multiple"])
        found = [output[0] for output in session.run(facts["outputs"], {facts["input"]: pixels})]
        if len(found) == 2:
            boxes, scores, labels = found[0], found[1].max(axis=1), found[1].argmax(axis=1)
        else:  # rows of left, top, right, bottom, score, class
            boxes, scores, labels = found[0][:, :4], found[0][:, 4], found[0][:, 5].astype(int)
        boxes_xyxy = (boxes.reshape(-1, 2, 2) - pad) / scale
        boxes_xyxy = np.clip(boxes_xyxy, 0, np.float32(image.shape[1::-1])).reshape(-1, 4)
        for row in suppress(boxes, scores, labels, **facts["suppression"]):
            where, label = [round(side, 2) for side in boxes_xyxy[row].tolist()], int(labels[row])
            said = {
                "box_xyxy": where,
                "score": round(float(scores[row]), 5),
                "label": label,
                "name": facts["names"][label],
            }
            rows.append({"image": path, **said})
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 2 else sys.exit(__doc__)
