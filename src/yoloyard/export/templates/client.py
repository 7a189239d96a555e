"""Boxes by an exported ONNX file, as JSON: `python client.py best.onnx IMAGE [IMAGE ...]`; see preprocess.json.

Needs numpy, opencv-python-headless and onnxruntime.
"""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np


def read(path: str, channels: int, bits: int, window: list[float] | None, **_: object) -> np.ndarray:
    """An image file as uint8 or uint16 (H, W, channels): transparent pixels composed on grey, else EXIF applied."""
    stored = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype not in (np.uint8, np.uint16):
        sys.exit(f"{path} is no image of 8 or 16 bits")
    start = Path(path).read_bytes()[:2]
    if channels == 3 and stored.ndim == 3 and stored.shape[2] == 4:
        if start in (b"II", b"MM"):
            sys.exit(f"{path} is a TIFF with transparency, which this program can't compose: use yoloyard.load")
        image, largest = stretched(stored[..., :3], bits, window), 2**bits - 1
        if start != b"BM" or stored[..., 3].any():  # else nobody filled it
            alpha = stretched(stored[..., 3:], bits, None).astype(np.uint32)
            behind = 114 * (largest // 255) * (largest - alpha)
            image = ((image * alpha + behind + largest // 2) // largest).astype(image.dtype)
        return image[..., ::-1]
    is_grey = channels == 1 and start == b"\xff\xd8"  # a JPEG holds its grey
    kind = cv2.IMREAD_GRAYSCALE if is_grey else cv2.IMREAD_COLOR
    values = np.array(cv2.imread(path, cv2.IMREAD_ANYDEPTH | kind))
    values = cv2.cvtColor(values, cv2.COLOR_BGR2GRAY) if channels == 1 and not is_grey else values
    return stretched(values, bits, window).reshape(*values.shape[:2], -1)[..., ::-1]


def stretched(values: np.ndarray, bits: int, window: list[float] | None) -> np.ndarray:
    """Values of 8 or 16 bits, their window or depth stretched over all values of so many bits."""
    depth = next(depth for depth in (8, 10, 12, 14, 16) if int(values.max()) < 2**depth)
    is_deep = values.dtype == np.uint16
    if window or bits == 16:
        low, high = window or (0, 2**depth - 1 if is_deep else 255)
        shares = np.clip((values - np.float64(low)) / (high - low), 0, 1)
        return np.floor(shares * (2**bits - 1) + 0.5).astype(np.uint8 if bits == 8 else np.uint16)
    return (values // 2 ** (depth - 8)).astype(np.uint8) if is_deep else values


def letterbox(
    image: np.ndarray, imgsz: int | list[int], shape: list[int] | None, multiple: int
) -> tuple[np.ndarray, ...]:
    """The input, float32 (1, channels, H, W), and the scale and padding, x and y, that lead to its pixels."""
    size = np.array(image.shape[:2])
    new = np.maximum(1, np.round(size * min(imgsz / size)).astype(int))
    padded = np.array(shape or new + (imgsz - new) % multiple)
    new = np.maximum(1, np.round(size * min(padded / size)).astype(int))
    before = (padded - new) // 2
    largest = np.iinfo(image.dtype).max
    image = cv2.resize(image, new[::-1].tolist(), interpolation=cv2.INTER_LINEAR).reshape(*new, -1)
    sides = [*zip(before, padded - new - before, strict=True), (0, 0)]
    image = np.pad(image, sides, constant_values=114 * (largest // 255))
    pixels = image.transpose(2, 0, 1)[None].astype(np.float32) / largest
    return pixels, (new / size)[::-1].astype(np.float32), before[::-1].astype(np.float32)


def best(scores: np.ndarray, conf: float) -> np.ndarray:
    """Which of the scores (n,) are above `conf`, best first."""
    return np.argsort(-scores, kind="stable")[: (scores > conf).sum()]


def suppress(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, conf: float, iou: float, max_det: int) -> list:
    """Rows of boxes (n, 4) to keep, best first: of those of a class that overlap by more than `iou` the best one."""
    order = best(scores, conf)[:30_000]
    kept: list[int] = []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    while len(order) and len(kept) < max_det:
        first, order = order[0], order[1:]
        kept.append(first)
        sides = np.minimum(boxes[first, 2:], boxes[order, 2:]) - np.maximum(boxes[first, :2], boxes[order, :2])
        shared = sides.clip(0).prod(axis=1)
        overlaps = shared / (areas[first] + areas[order] - shared).clip(np.float32(1e-30))
        order = order[(overlaps <= iou) | (labels[order] != labels[first])]
    return kept


def main(file: str, *paths: str) -> None:
    """Print the boxes of all images."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it is read at the import
    import onnxruntime

    facts = json.loads(Path(__file__).with_name("preprocess.json").read_text(encoding="utf-8"))
    if facts["tile"]:
        sys.exit(f"{file} takes tiles of images, which this program doesn't cut and merge: use yoloyard.load")
    wanted = facts["pixels"]
    if wanted["channels"] not in (1, 3) or wanted["files"] or wanted["percent"]:
        kind = "a window by percentiles" if wanted["percent"] else f"{wanted['channels']} channels"
        sys.exit(f"{file} takes images of {kind}, which this program can't make: use yoloyard.load")
    limits = facts["suppression"]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    rows = []
    for path in paths:
        image = read(path, **facts["pixels"])
        pixels, scale, pad = letterbox(image, facts["imgsz"], facts["shape"], facts["multiple"])
        boxes, *rest = (output[0] for output in session.run(facts["outputs"], {facts["input"]: pixels}))
        if not rest:  # rows of left, top, right, bottom, score and class
            scores, labels = boxes[:, 4], boxes[:, 5].astype(int)
        elif facts["needs_suppression"]:  # scores (P, C): a box counts by its best class
            scores, labels = rest[0].max(1), rest[0].argmax(1)
        else:  # by each class
            points, labels = (rest[0] > limits["conf"]).nonzero()
            boxes, scores = boxes[points], rest[0][points, labels]
        if facts["needs_suppression"]:
            kept = suppress(boxes[:, :4], scores, labels, **limits)
        else:
            kept = best(scores, limits["conf"])[: limits["max_det"]].tolist()
        corners = (boxes[kept, :4].reshape(-1, 2, 2) - pad) / scale
        corners = np.clip(corners, 0, np.array(image.shape[1::-1], np.float32)).reshape(-1, 4)
        for box, score, label in zip(corners.tolist(), scores[kept].tolist(), labels[kept].tolist(), strict=True):
            row = {"image": path, "box_xyxy": [round(side, 2) for side in box], "score": round(score, 5)}
            rows.append({**row, "label": label, "name": facts["names"][label]})
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 2 else sys.exit(__doc__)
