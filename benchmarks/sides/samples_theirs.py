"""The reference's side of samples.py: training samples by its public functions, one thread, in permuted order."""

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from turns import Turns
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader, build_yolo_dataset
from ultralytics.data.utils import check_det_dataset

BATCH = 16


def main() -> None:
    turns = Turns()
    data, cache, workers = check_det_dataset(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    settings = get_cfg(overrides={"imgsz": 640, "task": "detect", "cache": False if cache == "none" else cache})
    dataset = build_yolo_dataset(settings, data["train"], BATCH, data, mode="train", stride=32)
    loader = build_dataloader(dataset, BATCH, workers, shuffle=True, rank=-1) if workers else None
    batches = (batch for _ in itertools.count() for batch in (loader or permuted(dataset)))
    turns.count_samples(batches, BATCH)


def permuted(dataset: Any) -> Iterator[Any]:
    """The full batches of an epoch in a random order."""
    order = np.random.default_rng().permutation(len(dataset))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        yield dataset.collate_fn([dataset[int(each)] for each in order[start : start + BATCH]])


if __name__ == "__main__":
    main()
