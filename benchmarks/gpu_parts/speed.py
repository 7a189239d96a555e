"""How fast this machine trains: products of matrices, steps, compiled steps, the loader, a whole training."""

from __future__ import annotations

import gc
import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from gpu_parts.common import CLASSES, MODES, PROGRAM, Sizes, dtype_of, run_limited, synchronize

from on_device import Training, some_batch
from yoloyard.common.device import choose_precision, repeated_shapes
from yoloyard.config import recipes
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.data.formats.data_yaml import DataSpec, Entry
from yoloyard.data.index.index import Index, load_index
from yoloyard.data.loading.loader import make_train_loader, make_val_loader
from yoloyard.demo.drawing import NAMES
from yoloyard.demo.write import write_demo
from yoloyard.evaluation.metrics.coco import evaluate
from yoloyard.evaluation.validate import predict_all
from yoloyard.models import registry
from yoloyard.models.profile import profile
from yoloyard.runtimes.network import Network

BOXES = 16  # of an image
LEAST_STEPS = 3  # that are measured
COPIES = 32  # of each image that the loader reads


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_of(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> float:
    """Operations a second of a large product of matrices; float32 as TF32, which is what convolutions use."""
    matrix = torch.randn(sizes.matmul, sizes.matmul, device=device).to(dtype)
    result = torch.empty_like(matrix)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    best = 0.0
    for _ in range(5):  # the first ones are slow
        synchronize(device)
        began = time.perf_counter()
        for _ in range(5):
            torch.mm(matrix, matrix, out=result)
        synchronize(device)
        best = max(best, 5 * 2 * sizes.matmul**3 / (time.perf_counter() - began))
    torch.backends.cuda.matmul.allow_tf32 = before
    return best


def all_steps(device: torch.device, sizes: Sizes, peak: dict[str, float]) -> list[dict[str, Any]]:
    """Steps of all models in float32 and AMP, ever larger batches until the memory or the time is used up."""
    end = time.monotonic() + sizes.steps
    rows: list[dict[str, Any]] = []
    for done, model in enumerate(sizes.models):
        # an even share of what is left, over the models that are still to come
        model_end = time.monotonic() + (end - time.monotonic()) / (len(sizes.models) - done)
        full: set[str] = set()
        for images, mode in itertools.product(sizes.batches, MODES):
            if mode in full or (rows and rows[-1]["model"] == model and time.monotonic() > model_end):
                continue
            row = measure_steps(device, model, mode, images, sizes, compiled=False)
            if "error" in row:
                full.add(mode)
            rows.append(with_share(row, peak, sizes))
    return rows


def measure_steps(
    device: torch.device, model: str, mode: str, images: int, sizes: Sizes, compiled: bool
) -> dict[str, Any]:
    """Seconds of a training step and the most memory, or the error where there is not enough of it."""
    row: dict[str, Any] = {"model": model, "mode": mode, "batch": images}
    try:
        with repeated_shapes():  # as the trainer
            return row | _steps(device, model, dtype_of(device, mode), images, sizes, compiled)
    except torch.OutOfMemoryError:
        return row | {"error": "out of memory"}
    except RuntimeError as error:  # such as cuDNN's own way of saying that there is no memory
        return row | {"error": " ".join(str(error).split())[:200]}
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _steps(
    device: torch.device, model: str, dtype: torch.dtype, images: int, sizes: Sizes, compiled: bool
) -> dict[str, Any]:
    shape = (images, 3, sizes.imgsz, sizes.imgsz)
    training = Training(device, dtype, model, compiled_for=shape if compiled else None, num_classes=CLASSES)
    batches = [
        some_batch(images, sizes.imgsz, BOXES, seed, pinned=device.type == "cuda") for seed in range(LEAST_STEPS)
    ]
    for batch in batches[: 1 if device.type == "cpu" else None]:
        training.step(batch)
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    verdict = None
    count, began = 0, time.perf_counter()
    while count < LEAST_STEPS or time.perf_counter() - began < sizes.seconds:
        report = training.step(batches[count % LEAST_STEPS])
        if verdict is not None:
            verdict.read()  # as the trainer does: the host is a step ahead and no more
        verdict = report.send()
        count += 1
    synchronize(device)
    found: dict[str, Any] = {"seconds": (time.perf_counter() - began) / count, "said": training.lines}
    if device.type == "cuda":
        found["gigabytes"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def with_share(row: dict[str, Any], peak: dict[str, float], sizes: Sizes) -> dict[str, Any]:
    """The row with images a second and the share of the peak: a step is three forwards, by the published counting."""
    if "seconds" not in row:
        return row
    cost = profile(registry.build(row["model"], num_classes=CLASSES), sizes.imgsz)
    speed = row["batch"] / row["seconds"]
    share = 3 * (cost.flops + cost.attention_flops) * speed / peak[row["mode"]]
    return row | {"images_per_second": speed, "share_of_peak": share}


def compiled_steps(device: torch.device, model: str, batch: int, limit: float) -> dict[str, Any]:
    """Steps of a compiled network, in a process that is ended when its time is over."""
    row = {"model": model, "mode": "amp", "batch": batch}
    command = [*PROGRAM, "--compiled", model, str(batch)]
    if limit <= 1:
        return row | {"error": "no time was left"}
    answer, ending = run_limited([*command, "--rehearse"] if device.type == "cpu" else command, limit)
    lines = answer.strip().splitlines()
    return row | {"error": ending or "no answer"} if ending or not lines else json.loads(lines[-1])


def loader_speeds(device: torch.device, sizes: Sizes, folder: Path) -> list[dict[str, Any]]:
    """Training images a second (mosaic, affine, colour, flip) by the number of worker processes."""
    write_demo(folder / "drawn", train=sizes.images, val=1, size=sizes.image_size)
    for kind in ("images", "labels"):
        target = folder / "many" / kind / "train"
        target.mkdir(parents=True)
        for file in (folder / "drawn" / kind / "train").iterdir():
            for copy in range(COPIES):
                shutil.copyfile(file, target / f"{file.stem}-{copy}{file.suffix}")
    index = index_of(folder / "many", "train")
    rows = []
    for workers in [0, *itertools.takewhile(lambda count: count <= cores(), (2**power for power in range(6)))]:
        words = {"imgsz": sizes.imgsz, "batch": min(16, len(index)), "workers": workers}
        config = with_overrides(TrainConfig(), words)
        loader = make_train_loader(index, config, pin_memory=device.type == "cuda")
        batches = (batch for epoch in itertools.count() for batch in loader.epoch(epoch, epochs=10**6))
        for _ in range(2 * workers + 1):  # what was made ahead, while the workers started
            next(batches)
        count, began = 0, time.perf_counter()
        while count < workers + 2 or time.perf_counter() - began < sizes.seconds:
            next(batches)
            count += 1
        speed = count * config.batch / (time.perf_counter() - began)
        rows.append({"workers": workers, "images_per_second": speed})
        batches.close()
    return rows


def train_demo(device: torch.device, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Train yolo11n on the demo set with AMP: seconds of the epochs, and mAP."""
    train, val, size = sizes.demo
    write_demo(folder / "demo", train=train, val=val, size=size)
    indexes = {split: index_of(folder / "demo", split) for split in ("train", "val")}
    workers = 0 if device.type == "cpu" else min(8, cores())
    words = {"imgsz": size, "batch": min(8, train), "epochs": sizes.epochs, "workers": workers}
    config = with_overrides(TrainConfig(), words)
    config, _ = recipes.fit_to_run(config, words, train, len(NAMES))
    precision = choose_precision(device, amp=True)
    pin_memory = device.type == "cuda"
    loader = make_train_loader(indexes["train"], config, pin_memory=pin_memory)
    training = Training(device, precision.dtype, num_classes=len(NAMES), config=config, batches_per_epoch=len(loader))
    seconds = []
    for epoch in range(config.epochs):
        began = time.perf_counter()
        verdict = None
        for batch in loader.epoch(epoch):
            report = training.step(batch)
            if verdict is not None:
                verdict.read()
            verdict = report.send()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    found: dict[str, Any] = {"epochs": config.epochs, "images": train, "seconds": seconds, "workers": workers}
    began = time.perf_counter()
    batches = make_val_loader(indexes["val"], size, 2 * config.batch, workers=workers, pin_memory=pin_memory)
    predictions = predict_all(Network(training.engine.average.model, device, precision), batches, config.evaluation)
    figures = evaluate(indexes["val"], predictions, config.evaluation.max_det).figures()
    return found | {"validation_seconds": time.perf_counter() - began, "figures": figures}


def index_of(folder: Path, split: str) -> Index:
    """The index of a demo set, without its data.yaml, which needs a package to be read."""
    return load_index(
        DataSpec(folder / "data.yaml", NAMES, {split: (Entry(folder / "images" / split),)}, folder), split
    )
