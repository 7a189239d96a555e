"""A data set of drawn squares."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import yaml


def write_squares(
    folder: Path, shape: tuple[int, int], side: int, centres: Sequence[Sequence[tuple[int, int]]]
) -> Path:
    """Images of `shape` (H, W), each with a bright square at each of its `centres` (y, x); the data.yaml."""
    height, width = shape
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number, of_image in enumerate(centres):
        image = np.full((height, width, 3), 60, np.uint8)
        for y, x in of_image:
            image[y - side // 2 : y + side // 2, x - side // 2 : x + side // 2] = 220
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
        lines = [f"0 {x / width} {y / height} {side / width} {side / height}\n" for y, x in of_image]
        (folder / "labels" / f"{number}.txt").write_text("".join(lines))
    data = folder / "data.yaml"
    data.write_text(yaml.safe_dump({"path": str(folder), "train": "images", "val": "images", "names": ["square"]}))
    return data
