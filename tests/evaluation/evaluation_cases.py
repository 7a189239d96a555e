"""Small data sets with true and found boxes for the tests of this folder; no files needed."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from yoloyard.common.structures import Detections
from yoloyard.data.audit.problems import Problem
from yoloyard.data.index.index import Index, Paths, Texts


def make_index(
    names: Sequence[str],
    images: Sequence[tuple[Sequence | np.ndarray, Sequence[int] | np.ndarray, Sequence[bool] | np.ndarray]],
    paths: Sequence[Path] | None = None,
    problems: Sequence[Problem] = (),
) -> Index:
    """An index of 640 x 480 images from (xyxy, labels, ignore) of each."""
    if paths is None:
        paths = [Path(f"/images/{i:03}.jpg") for i in range(len(images))]
    encoded = [os.fsencode(path) for path in paths]
    return Index(
        names=tuple(names),
        paths=Paths(np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)])),
        sizes=np.tile(np.array([480, 640], np.int32), (len(images), 1)),
        offsets=np.cumsum([0, *(len(labels) for _, labels, _ in images)]),
        boxes=np.concatenate(
            [np.zeros((0, 4), np.float32), *(np.asarray(boxes, np.float32).reshape(-1, 4) for boxes, _, _ in images)]
        ),
        labels=np.concatenate([np.zeros(0, np.int64), *(np.asarray(labels, np.int64) for _, labels, _ in images)]),
        ignore=np.concatenate([np.zeros(0, bool), *(np.asarray(ignore, bool) for _, _, ignore in images)]),
        problems=tuple(problems),
        source_ids=np.arange(len(images)),
        category_ids=np.arange(len(names)),
        file_names=Texts.of(Path(path).name for path in paths),
    )


def detections(*rows: tuple[Sequence[float], float, int]) -> Detections:
    """Detections from (xyxy, score, label) rows."""
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor(scores),
        torch.tensor(labels, dtype=torch.int64),
    )


def random_case(num_images: int, num_classes: int, seed: int) -> tuple[Index, dict[int, Detections]]:
    """Every third image empty, image 1 dense (150 true, 300 found), crowds, equal scores, a class without boxes."""
    random = np.random.default_rng(seed)
    images, predictions = [], {}
    for image_id in range(num_images):
        count = 0 if image_id % 3 == 0 else 150 if image_id == 1 else int(random.integers(1, 12))
        corner = random.uniform(0, 400, (count, 2))
        boxes = np.concatenate((corner, corner + np.exp(random.uniform(1.5, 5.3, (count, 2)))), axis=1)
        labels = random.integers(0, num_classes - 1, count)
        images.append((boxes, labels, random.random(count) < 0.1))

        num_found = 300 if image_id == 1 else int(random.integers(0, 20))
        if count:
            source = random.integers(0, count, num_found)
            found = boxes[source] + random.normal(0, 4, (num_found, 4))
            found_labels = np.where(random.random(num_found) < 0.8, labels[source], 0)
        else:
            found, found_labels = random.uniform(0, 400, (num_found, 4)), random.integers(0, num_classes, num_found)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        predictions[image_id] = Detections(
            torch.from_numpy(found.astype(np.float32)),
            torch.from_numpy(random.random(num_found).round(2).astype(np.float32)),
            torch.from_numpy(found_labels.astype(np.int64)),
        )
    return make_index([f"class {c}" for c in range(num_classes)], images), predictions
