"""What was fixed without a GPU to prove it on, each as a check in this process; those of whole runs are in runs.py."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist
from device_traffic import maps_with_objects
from gpu_parts.checks import Check
from gpu_parts.memory import of_memory
from torch import Tensor, nn

from launches import Launches
from on_device import some_batch
from yoloyard.common.device import (
    Precision,
    choose_device,
    choose_precision,
    free_bytes,
    precision_text,
    repeated_shapes,
)
from yoloyard.common.log import shown_lines
from yoloyard.common.structures import Batch
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import EvaluationConfig, OptimizerConfig, TrainConfig
from yoloyard.evaluation.validate import detect
from yoloyard.losses import build_criterion
from yoloyard.models import registry
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorFreeHead
from yoloyard.runtimes.network import Network
from yoloyard.training.engine.compilation import compile_network, shape_to_try, shapes_vary
from yoloyard.training.engine.engine import Engine, StepReport
from yoloyard.training.stopwatch import Stopwatch

LAUNCHES = 150  # of assignment and loss
WAIT_SECONDS = 0.3
COPIES = 40  # to the host, of a validation batch of 32 images


class Small(Detector):
    """A network of a few convolutions, one of whose parameters no forward uses."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=4, padding=2)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)) for _ in range(3)
        )
        self.unused = nn.Parameter(torch.ones(4))
        self.head = AnchorFreeHead((8, 8, 8), num_classes, (8, 16, 32), depthwise=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return self.head(maps[1:])


class Ready(nn.Module):
    """A detector whose maps are there already: what follows them is what it costs."""

    def __init__(self, device: torch.device, images: int, side: int) -> None:
        super().__init__()
        self.maps = [level.to(device) for level in maps_with_objects(images, 8, 1, side)]
        self.head = AnchorFreeHead((8, 8, 8), 1, (8, 16, 32), depthwise=False).to(device)
        self.decode_above = self.head.decode_above
        self.strides, self.num_classes = self.head.strides, 1

    def fused(self, suppression: bool | None = None) -> Self:
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.maps


def communicator(device: torch.device) -> str:
    """1: the device that the user names is one that torch.distributed takes."""
    chosen = choose_device(device.type)
    with tempfile.TemporaryDirectory() as folder:
        on_gpu = {"device_id": chosen} if chosen.type == "cuda" else {}
        store = dist.FileStore(str(Path(folder, "store")), 1)
        dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=0, world_size=1, **on_gpu)  # type: ignore[arg-type]
        try:
            dist.all_reduce(torch.ones(1, device=chosen))
        finally:
            dist.destroy_process_group()
    return str(chosen)


def flags(device: torch.device) -> None:
    """2: a step is judged by its own flags, behind a device that is busy."""
    matrix = torch.rand(1024, 1024, device=device) / 1024
    for bad, finite in itertools.islice(itertools.cycle([(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]), 30):
        for _ in range(20):
            matrix = (matrix @ matrix).clamp(0, 1)
        later = matrix.sum() * 0
        three = later.expand(3)
        verdict = StepReport(three, later, later + bad, later + finite, three[:2], three, number=0).send()
        assert verdict.read() == (bad > 0, finite > 0, False, False)


def batches(device: torch.device) -> None:
    """2: what is in a batch arrives, though its memory is overwritten or given back at once."""
    for seed, pinned in itertools.product(range(10), (False, True) if device.type == "cuda" else (False,)):
        expected = some_batch(8, 256, seed=seed)
        source = some_batch(8, 256, seed=seed, pinned=pinned)
        sent = source.to(device)
        if device.type != "cpu" and not pinned:
            source.images.zero_()
        del source
        some_batch(8, 256, seed=99, pinned=pinned)  # takes memory that is free
        assert torch.equal(sent.images.cpu(), expected.images)
        assert torch.equal(sent.boxes.cpu(), expected.boxes)


def precisions(device: torch.device) -> str:
    """3: each device is asked for itself; 15: the line that names the precision."""
    said = []
    for index in range(max(1, torch.cuda.device_count())):
        each = device if device.type == "cpu" else torch.device(device.type, index)
        found = choose_precision(each, amp=True)
        if device.type == "cuda" and torch.version.hip is None:
            native = torch.cuda.get_device_capability(each)[0] >= 8
            assert found.dtype == (torch.bfloat16 if native else torch.float16)
        said.append(f"{each}: {found.name} or {precision_text(Precision(each.type, torch.float32), each)}")
    return ", ".join(said)


def unused_parameter(device: torch.device) -> None:
    """4: what no forward uses is left alone."""
    detector = Small().to(device).train()
    optimization = OptimizerConfig(optimizer="SGD", weight_decay=0.1, nbs=2, warmup_epochs=0, ema_ramp=10.0)
    config = TrainConfig(batch=2, optimization=optimization)
    criterion, gains = build_criterion(detector.head, config)
    engine = Engine(detector, criterion, gains, Precision(device.type, torch.float32), config, 10)
    for seed in range(3):
        assert engine.step(some_batch(seed=seed)).send().read() == (False, True, False, False)
    assert torch.equal(detector.unused.cpu(), torch.ones(4))


def waiting(device: torch.device) -> str:
    """5: waiting for data is what the device misses."""

    def slow() -> Iterator[Batch]:
        while True:
            time.sleep(WAIT_SECONDS)
            yield some_batch()

    matrix = torch.rand(4096 if device.type == "cuda" else 256, device=device).diag()

    def seconds_of(work: Callable[[], object]) -> float:
        stopwatch, batches = Stopwatch(device), slow()
        for _ in range(3):
            work()
            stopwatch.wait_for(batches)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        figures = stopwatch.figures()
        return figures["waiting_fraction"] * figures["seconds"]

    def busy() -> None:
        for _ in range(400):  # some seconds
            torch.mm(matrix, matrix)

    idle, ahead = seconds_of(lambda: None), seconds_of(busy)
    assert idle >= 3 * WAIT_SECONDS * 0.9
    assert device.type == "cpu" or ahead < WAIT_SECONDS
    return f"{idle:.2f} s of {3 * WAIT_SECONDS:.2f} with nothing to do, {ahead:.2f} s of it while it works"


def loss_launches(device: torch.device) -> str:
    """9: kernels of assignment and loss, yolo11n at batch 64, 640 pixels, 256 boxes an image, 80 classes."""
    images, side, boxes = (64, 640, 256) if device.type == "cuda" else (2, 64, 8)
    detector = registry.build("yolo11n", num_classes=80).to(device)
    criterion, _ = build_criterion(detector.head, TrainConfig(), free_bytes=free_bytes(device))
    maps = [torch.randn(images, 144, side // stride, side // stride, device=device) for stride in detector.strides]
    batch = some_batch(images, side, boxes).to(device)
    count = _launches(device, lambda: criterion(maps, batch.boxes, batch.labels))[0]
    assert count <= LAUNCHES or device.type == "cpu", f"{count} launches"
    return f"{count} launches"


def validation_copies(device: torch.device) -> str:
    """15: kernels of decoding and suppression for 32 images, and copies to the host."""
    side = 320
    network = Network(Ready(device, 32, side), device, Precision(device.type, torch.float32))
    images = torch.zeros(32, 3, side, side, dtype=torch.uint8, device=device)
    count, copies = _launches(
        device, lambda: detect(network, images, [None] * 32, EvaluationConfig(), multi_label=True)
    )
    assert copies <= COPIES, f"{copies} copies to the host"
    return f"{count} launches, {copies} copies to the host"


def _launches(device: torch.device, work: Callable[[], object]) -> tuple[int, int]:
    """Kernels that `work` launches and its copies to the host, by the device's own count; on a CPU operations."""
    work()  # libraries get ready
    if device.type == "cpu":
        with Launches() as launches:
            work()
        return len(launches.names), 0
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        work()
        torch.accelerator.synchronize()
    counts = {event.key: event.count for event in profile.key_averages()}
    kernels = sum(count for key, count in counts.items() if "LaunchKernel" in key)
    return kernels, sum(count for key, count in counts.items() if "Memcpy DtoH" in key)


def compiled_shapes(device: torch.device) -> str:
    """12: with --compile --rect nothing is compiled after the probe."""
    config = with_overrides(TrainConfig(), {"rect": True, "imgsz": 128, "batch": 4})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    lines: list[str] = []
    detector = Small().to(device).train()
    shape, precision = shape_to_try(config, 1, 32), choose_precision(device, amp=device.type == "cuda")
    backend = "eager" if device.type == "cpu" else "inductor"
    with shown_lines(lines.append):
        network = compile_network(detector, detector, shape, precision, shapes_vary(config), backend)
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    for height, width in ((128, 96), (96, 128), (128, 128), (64, 160), (160, 64)):
        images = torch.rand(4, 3, height, width, device=device).to(memory_format=torch.channels_last)
        with precision.autocast():
            sum(level.float().sum() for level in network(images)).backward()
    assert before > 0, lines
    assert counters["unique_graphs"] == before, f"{counters['unique_graphs'] - before} compiled again"
    return "; ".join(lines)


def searched_algorithms(device: torch.device) -> str:
    """15: what cuDNN's search for the fastest algorithm gains, yolo11n in mixed precision."""
    images, side = (16, 640) if device.type == "cuda" else (1, 64)
    detector = registry.build("yolo11n", num_classes=80).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    pixels = torch.rand(images, 3, side, side, device=device).to(memory_format=torch.channels_last)
    precision, times = choose_precision(device, amp=True), {}
    for search in (False, True):
        with repeated_shapes(search):
            for number in range(8):
                if number == 3:
                    torch.accelerator.synchronize() if device.type != "cpu" else None
                    began = time.perf_counter()
                with precision.autocast():
                    sum(level.float().sum() for level in detector(pixels)).backward()
            torch.accelerator.synchronize() if device.type != "cpu" else None
            times[search] = (time.perf_counter() - began) / 5
    return f"{1000 * times[False]:.1f} ms a step without the search, {1000 * times[True]:.1f} ms with it"


def of_items(device: torch.device) -> dict[str, Check]:
    """The checks of this file by what they are about."""
    return {
        "a device for a communicator": partial(communicator, device),
        "flags have arrived when they are read": partial(flags, device),
        "a batch arrives, whatever becomes of its source": partial(batches, device),
        "precision": partial(precisions, device),
        "an unused parameter is left alone": partial(unused_parameter, device),
        "waiting for data": partial(waiting, device),
        "assignment and loss": partial(loss_launches, device),
        "rectangles are compiled once": partial(compiled_shapes, device),
        "cuDNN": partial(searched_algorithms, device),
        "a validation batch of 32": partial(validation_copies, device),
        **of_memory(device),
    }
