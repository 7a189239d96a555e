"""What a training sample can't do without: one image read and decoded in full, nothing else; one thread."""

import sys
import time
from pathlib import Path

import cv2
import numpy as np
from turns import Turns

IMAGES = 512  # of a turn


def main() -> None:
    turns = Turns()
    cv2.setNumThreads(1)
    files = sorted((Path(sys.argv[1]).parent / "images" / "train").iterdir())
    random = np.random.default_rng(0)
    while turns.wait():
        began = time.perf_counter()
        for each in random.permutation(len(files))[:IMAGES]:
            cv2.imdecode(np.frombuffer(files[each].read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        turns.report(samples_per_second=IMAGES / (time.perf_counter() - began))


if __name__ == "__main__":
    main()
