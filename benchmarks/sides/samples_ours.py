"""Our side of samples.py: training samples of a data set, by our loader in this process, one thread."""

import sys
import time
from pathlib import Path

import cv2
import torch
from turns import Turns

from yoloyard.config import TrainConfig
from yoloyard.data.data_yaml import read_data_yaml
from yoloyard.data.index import load_index
from yoloyard.data.loader import make_train_loader

BATCH = 16


def main() -> None:
    turns = Turns()
    data, cache, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    index = load_index(read_data_yaml(data), "train")
    config = TrainConfig(batch=BATCH, workers=workers, cache=None if cache == "none" else cache)
    loader = make_train_loader(index, config)
    epoch = 0
    while turns.wait():
        began, count = time.perf_counter(), 0
        for batch in loader.epoch(epoch):
            count += len(batch.image_ids)
        turns.report(samples_per_second=count / (time.perf_counter() - began))
        epoch += 1


if __name__ == "__main__":
    main()
