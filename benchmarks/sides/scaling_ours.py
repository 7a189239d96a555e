"""What scaling.py measures, in a process of its own: `images DATA`, or `boxes COUNT COUNT ...`."""

import json
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from yoloyard.config import TrainConfig, with_words
from yoloyard.data.data_yaml import read_data_yaml
from yoloyard.data.epoch_plan import plan_epochs
from yoloyard.data.index import Index, Paths, Texts, load_index
from yoloyard.data.loader import collate, make_train_loader
from yoloyard.evaluation.coco import evaluate
from yoloyard.losses.task_aligned import TaskAlignedLoss
from yoloyard.models import registry
from yoloyard.nms import suppress
from yoloyard.structures import Detections, Sample

BATCHES = 12


def images(data: str) -> dict[str, float]:
    """Seconds to build and reopen the index, to plan an epoch and to get a batch; samples/s; gigabytes at most."""
    spec = read_data_yaml(data)
    time.sleep(3)  # files that have just been written are not trusted to stay
    build = seconds(lambda: load_index(spec, "train"))
    reopen = seconds(lambda: load_index(spec, "train"))
    index = load_index(spec, "train")
    config = with_words(TrainConfig(), {"imgsz": 640, "batch": 16, "workers": 0})
    plan = seconds(lambda: plan_epochs(index, config).order(1))
    began = time.perf_counter()
    batches = make_train_loader(index, config).epoch(0)
    next(batches)
    first = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    samples = BATCHES * 16 / (time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "build": build,
        "reopen": reopen,
        "plan": plan,
        "first batch": first,
        "samples": samples,
        "memory": peak,
    }


def boxes(count: int) -> dict[str, float]:
    """Seconds for a batch or set of 8 images with `count` boxes each."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 600, (8, count, 2))
    true = np.concatenate((corners, corners + random.uniform(4, 40, (8, count, 2))), axis=2).astype(np.float32)
    labels = random.integers(0, 10, (8, count))
    pixels = np.zeros((64, 64, 3), np.uint8)
    samples = [Sample(pixels, true[i], labels[i], np.zeros(count, bool), i) for i in range(8)]
    torch.manual_seed(0)
    detector = registry.build("yolo11n", num_classes=10)
    maps = [torch.randn(8, 74, side, side, requires_grad=True) for side in (80, 40, 20)]
    loss = TaskAlignedLoss(detector.strides, 10, reads=True)
    true_boxes, true_labels = torch.from_numpy(true), torch.from_numpy(labels)
    scores = torch.rand(8, count, 10)
    index = index_of(true, labels)
    rows = min(count, 300)
    found = {i: Detections(true_boxes[i, :rows] + 3, torch.rand(rows), true_labels[i, :rows]) for i in range(8)}
    return {
        "loss": seconds(lambda: loss(maps, true_boxes, true_labels), 2),
        "suppression": seconds(lambda: suppress(true_boxes, scores, 0.001, 0.7, 300, True), 2),
        "evaluation": seconds(lambda: evaluate(index, found, 300), 2),
        "collation": seconds(lambda: collate(samples, (8, 64, 512, 5000)), 2),
    }


def index_of(true: np.ndarray, labels: np.ndarray) -> Index:
    """An index of pictures of 640 x 640 that no file belongs to."""
    paths = Texts.of(f"/{i}.jpg" for i in range(len(true)))
    return Index(
        names=tuple(map(str, range(10))),
        paths=Paths(paths.text, paths.offsets),
        sizes=np.full((len(true), 2), 640, np.int32),
        offsets=np.arange(len(true) + 1) * true.shape[1],
        boxes=true.reshape(-1, 4),
        labels=labels.reshape(-1),
        ignore=np.zeros(labels.size, bool),
        problems=(),
        source_ids=np.arange(len(true)),
        category_ids=np.arange(10),
        file_names=paths,
    )


def seconds(do: Callable[[], object], repeats: int = 1) -> float:
    """The shortest of some calls; with several, one more before them."""
    if repeats > 1:
        do()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        do()
        taken.append(time.perf_counter() - began)
    return min(taken)


def main() -> None:
    what, *words = sys.argv[1:]
    if what == "images":
        answer: dict = images(words[0])
    else:
        by_count = {count: boxes(int(count)) for count in words}
        answer = {name: {count: by_count[count][name] for count in words} for name in next(iter(by_count.values()))}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
