"""A set of JPEGs with 640 to 1920 pixels on the long side, put together of those of other sets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

VERSION = 1  # raise it with every change to the images
SHAPES = ((3, 4), (2, 3), (9, 16), (1, 1), (4, 3), (3, 2))  # height to width
QUALITY = 90
IMAGES, TIMES = 171, 6  # of the set that is measured: how many images, and how often each is in it
SIDE = 320  # of the images that they are made of


def write_set(folder: Path, sources: Sequence[Path], count: int, times: int, seed: int = 0) -> Path:
    """Write `count` images and labels of one class, filled with those of the sets `sources`; the data.yaml.

    Each is there `times` times, by hard links, so that no program can keep all of them decoded by the way.

    A source is a folder with images/train and labels/train in the YOLO layout, of square images. What lies in
    `folder` already is used if it was made of the same.
    """
    data, marker = folder / "data.yaml", folder / "made.json"
    recipe = json.dumps([VERSION, [str(source.resolve()) for source in sources], count, times, seed])
    if marker.is_file() and marker.read_text(encoding="utf-8") == recipe:
        return data
    shutil.rmtree(folder, ignore_errors=True)
    random = np.random.default_rng(seed)
    images = [sorted((source / "images" / "train").iterdir()) for source in sources]
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    for number in range(count):
        image, boxes = _composed(images, random)
        path = folder / "images" / "train" / f"{number:04}-0.jpg"
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        size = np.array([image.shape[1], image.shape[0]] * 2)
        rows = np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), axis=1) / size
        text = "".join("0 {:.6f} {:.6f} {:.6f} {:.6f}\n".format(*row) for row in rows)
        for copy in range(times):
            (folder / "labels" / "train" / f"{number:04}-{copy}.txt").write_text(text, encoding="utf-8")
            if copy:
                path.with_name(f"{number:04}-{copy}.jpg").hardlink_to(path)
    data.write_text(f"path: {folder.resolve()}\ntrain: images/train\nval: images/train\nnames:\n  0: thing\n")
    marker.write_text(recipe, encoding="utf-8")
    return data


def _composed(images: list[list[Path]], random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """BGR pixels and boxes xyxy in pixels: images side by side, enlarged, with the noise of a camera."""
    longest = int(random.integers(640, 1921))
    high, wide = SHAPES[random.integers(len(SHAPES))]
    height, width = round(longest * high / max(high, wide)), round(longest * wide / max(high, wide))
    zoom = random.uniform(2, 4)
    image, boxes = np.empty((height, width, 3), np.uint8), [np.empty((0, 4))]
    side = round(SIDE * zoom)
    for top in range(0, height, side):
        for left in range(0, width, side):
            source = images[random.integers(len(images))]
            path = source[random.integers(len(source))]
            pixels = cv2.imread(str(path))
            assert pixels is not None, path
            part = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_CUBIC)
            part = part[: height - top, : width - left]
            image[top : top + side, left : left + side] = part
            label = Path(str(path).replace("/images/", "/labels/")).with_suffix(".txt")
            lines = label.read_text().splitlines() if label.exists() else []
            rows = np.array([line.split() for line in lines], float).reshape(-1, 5)[:, 1:] * side
            found = np.concatenate((rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2), axis=1)
            found = (found + np.array([left, top] * 2)).clip(0, [width, height, width, height])
            boxes.append(found[((found[:, 2:] - found[:, :2]) > 4).all(axis=1)])
    noise = random.normal(0, 1.5, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8), np.concatenate(boxes)
