"""Our side of samples.py: training samples of a data set, by our loader in this process, one thread."""

import itertools
import sys
from pathlib import Path

import cv2
import torch
from turns import Turns

from yoloyard.config.settings import TrainConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import load_index
from yoloyard.data.loading.loader import make_train_loader

BATCH = 16


def main() -> None:
    turns = Turns()
    data, cache, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    index = load_index(read_data_yaml(data), "train")
    config = TrainConfig(batch=BATCH, workers=workers, cache=None if cache == "none" else cache)
    loader = make_train_loader(index, config)
    # One epoch after the other, without a pause: what is kept of an epoch's images is of use in the next.
    batches = (batch for epoch in itertools.count() for batch in loader.epoch(epoch, epochs=10**9))
    turns.count_samples(batches, BATCH)


if __name__ == "__main__":
    main()
