"""What scaling.py measures, in a process of its own: `images DATA`, `boxes COUNT ...` or `copies COUNT ...`."""

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from yoloyard.common.nms import suppress_found
from yoloyard.common.structures import Detections, Sample
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.cpu.points_in_boxes import use_points_in_boxes
from yoloyard.data.audit.duplicates import _nearest
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import Index, Paths, Texts, load_index
from yoloyard.data.loading.batches import collate
from yoloyard.data.loading.epoch_plan import plan_epochs
from yoloyard.data.loading.loader import make_train_loader
from yoloyard.evaluation.metrics.coco import evaluate
from yoloyard.losses.task_aligned import TaskAlignedLoss
from yoloyard.models import registry

BATCHES = 12


def images(data: str) -> dict[str, float]:
    """Seconds to build and reopen the index, to plan an epoch and to get a batch; samples/s; gigabytes at most.

    And megabytes that belong to a worker alone, after it has read all labels.
    """
    spec = read_data_yaml(data)
    time.sleep(3)  # files that have just been written are not trusted to stay
    build = seconds(lambda: load_index(spec, "train"))
    reopen = seconds(lambda: load_index(spec, "train"))
    index = load_index(spec, "train")
    config = with_overrides(TrainConfig(), {"imgsz": 640, "batch": 16, "workers": 0})
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
        "worker": megabytes_of_a_worker(index),
    }


def megabytes_of_a_worker(index: Index) -> float:
    """What a forked worker holds for itself alone when it has looked at every image's labels and path."""
    receive, send = multiprocessing.Pipe()

    def walk() -> None:
        for position in range(len(index)):
            index.annotations(position)
            _ = index.paths[position]
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        send.send(sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024)

    worker = multiprocessing.get_context("fork").Process(target=walk)
    worker.start()
    megabytes = receive.recv()
    worker.join()
    return megabytes


def copies(count: int) -> float:
    """Seconds of the search for images of a split among `count` of another that is ten times as large."""
    thumbnails = np.random.default_rng(0).integers(0, 256, (count + count // 10, 32, 32), np.uint8)
    return seconds(lambda: _nearest(thumbnails[:count], thumbnails[count:]))


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
    loss = use_points_in_boxes(TaskAlignedLoss(detector.strides, 10))
    true_boxes, true_labels = torch.from_numpy(true), torch.from_numpy(labels)
    images, scores = torch.arange(8).repeat_interleave(count), torch.rand(8 * count)
    scattered = true_boxes.flatten(0, 1)
    pile = torch.tensor([300.0, 300, 400, 400]) + 4 * torch.randn(8 * count, 4)
    index = index_of(true, labels)
    rows = min(count, 300)
    found = {i: Detections(true_boxes[i, :rows] + 3, torch.rand(rows), true_labels[i, :rows]) for i in range(8)}

    def step() -> None:
        parts = loss(maps, true_boxes, true_labels).values()
        torch.cat([sums / norms.clamp(min=1) for sums, norms in parts]).sum().backward()

    def suppress(found_boxes: torch.Tensor) -> None:
        suppress_found(8, images, found_boxes, scores, true_labels.flatten(), 0.7, 300)

    return {
        "loss": seconds(step, 2),
        "suppression, scattered": seconds(lambda: suppress(scattered), 2),
        "suppression, a pile": seconds(lambda: suppress(pile), 2),
        "evaluation": seconds(lambda: evaluate(index, found, 300), 2),
        "collation": seconds(lambda: collate(samples, (8, 64, 512, 5000)), 2),
        **from_disk(true, labels),
    }


def from_disk(true: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Seconds to index these boxes as YOLO text and to make a batch of training samples of them."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("images", "labels"):
            Path(folder, kind, "train").mkdir(parents=True)
        image = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
        files = [Path(folder, "labels", "train", f"{number}.txt") for number in range(len(true))]
        for file in files:
            cv2.imwrite(f"{folder}/images/train/{file.stem}.jpg", image)
            file.write_text("0 0.5 0.5 0.1 0.1\n")
        data = Path(folder, "data.yaml")
        data.write_text(f"train: images/train\nval: images/train\nnames: {[str(n) for n in range(10)]}\n")
        spec = read_data_yaml(data)
        load_index(spec, "train")  # examines the images, which is no matter of boxes
        for file, corners, classes in zip(files, true / 640, labels, strict=True):
            rows = np.column_stack((classes, (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]))
            np.savetxt(file, rows, ["%d", *["%.6f"] * 4])
        index = seconds(lambda: load_index(spec, "train"))
        config = with_overrides(TrainConfig(), {"imgsz": 640, "batch": 8, "workers": 0})
        loader = make_train_loader(load_index(spec, "train"), config)
        return {"index": index, "samples": seconds(lambda: list(loader.epoch(0)), 2)}


def index_of(true: np.ndarray, labels: np.ndarray) -> Index:
    """An index of images of 640 x 640 that no file belongs to."""
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
    elif what == "copies":
        answer = {count: copies(int(count)) for count in words}
    else:
        by_count = {count: boxes(int(count)) for count in words}
        answer = {name: {count: by_count[count][name] for count in words} for name in next(iter(by_count.values()))}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
