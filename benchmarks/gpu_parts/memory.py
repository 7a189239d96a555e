"""What a GPU makes of too little memory: a batch in parts, maps that are computed again, a batch that is found."""

from __future__ import annotations

import time
from functools import partial

import torch
from gpu_parts.checks import Check
from gpu_parts.common import synchronize
from torch import nn

from exhausted import limit
from on_device import Training, some_batch
from yoloyard.common.device import choose_precision, release_memory
from yoloyard.common.log import shown_lines
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.models import registry
from yoloyard.training.engine.checkpointing import checkpoint_activations
from yoloyard.training.engine.engine import Engine
from yoloyard.training.setup.batch_size import find_batch
from yoloyard.training.strategies.placement import Placement

STEPS = 5  # that are measured, after two that are not
NOMINAL = 256  # images up to which a batch is looked for


def parts(device: torch.device) -> str:
    """The memory ends in the backward pass: the losses of the whole batch, and a free device for the second attempt."""
    whole, less = Training(device), Training(device)
    for training in (whole, less):
        for module in training.detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    convolutions = [module for module in less.detector.modules() if isinstance(module, nn.Conv2d)]
    limit(convolutions[0], 2 * 64 * 64 // 4, "backward")  # the pixels of two images
    batch = some_batch(8)
    expected, found = whole.backward(batch), less.backward(batch)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    assert less.engine.micro_batch == 2, f"{less.engine.micro_batch} images at once"
    return "8 images as 4 times 2"


def computed_again(device: torch.device) -> str:
    """Memory and time of a step without and with --checkpoint-activations."""
    plain, again = (_cost(device, is_checkpointed) for is_checkpointed in (False, True))
    return f"{again} a step instead of {plain}"


def _cost(device: torch.device, is_checkpointed: bool) -> str:
    """Seconds of a step, and the gigabytes of tensors at its peak (0 on a CPU)."""
    model, images, side = ("yolo11x", 8, 640) if device.type == "cuda" else ("yolo11n", 1, 64)
    training = Training(device, choose_precision(device, amp=True).dtype, model)
    if is_checkpointed:
        checkpoint_activations(training.detector)
    for number in range(2 + STEPS):
        if number == 2:
            synchronize(device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
        training.step(some_batch(images, side))
    synchronize(device)
    seconds = (time.perf_counter() - began) / STEPS
    gigabytes = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    del training
    release_memory(device)
    return f"{1000 * seconds:.0f} ms and {gigabytes:.2f} GB"


def placed(device: torch.device) -> str:
    """Losses of a model on two GPUs beside those on one, and the gigabytes of each; with one GPU there is no answer."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        return "not measured: there is one GPU"
    devices = [torch.device("cuda", number) for number in range(2)] if device.type == "cuda" else [device, device]
    model, images, side = ("yolo11x", 2, 1280) if device.type == "cuda" else ("yolo11n", 1, 64)
    losses, seconds = [], []
    for place in (devices[:1], devices):
        own = Training(devices[0], choose_precision(device, amp=True).dtype, model)
        strategy = Placement(own.detector, devices) if len(place) > 1 else None
        engine = Engine(
            own.detector,
            own.engine.criterion,
            own.engine.gains,
            own.engine.precision,
            own.engine.config,
            10**6,
            strategy,
        )
        for number in range(2 + STEPS):
            if number == 2:
                synchronize(device)
                for each in place:
                    torch.cuda.reset_peak_memory_stats(each) if device.type == "cuda" else None
                began = time.perf_counter()
            report = engine.step(some_batch(images, side))
            if not number:
                losses.append(report.losses)
        synchronize(device)
        seconds.append((time.perf_counter() - began) / STEPS)
        peaks = [torch.cuda.max_memory_allocated(each) / 2**30 if device.type == "cuda" else 0.0 for each in place]
        del own, engine, strategy, report
        release_memory(device)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=1e-3)
    held = " and ".join(f"{peak:.2f}" for peak in peaks)
    return f"{1000 * seconds[1]:.0f} ms instead of {1000 * seconds[0]:.0f} ms a step; {held} GB"


def found_batch(device: torch.device) -> str:
    """What --batch auto finds for yolo11x at 640 pixels, and that a tenth of the memory stays free."""
    config = with_overrides(TrainConfig(), {"imgsz": 640, "nbs": NOMINAL})
    lines: list[str] = []
    with shown_lines(lines.append):
        batch = find_batch(
            config, registry.build("yolo11x", num_classes=80), device, choose_precision(device, True), 64, 1
        )
    assert 1 <= batch <= NOMINAL, f"{batch} images"
    return lines[-1]


def of_memory(device: torch.device) -> dict[str, Check]:
    """The checks of this file by what they are about."""
    return {
        "a batch that exhausts the memory": partial(parts, device),
        "--checkpoint-activations": partial(computed_again, device),
        "--batch auto": partial(found_batch, device),
        "--strategy placement": partial(placed, device),
    }
