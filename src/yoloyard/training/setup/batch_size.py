"""`--batch auto`: the largest batch up to the nominal one that leaves a tenth of the device's memory free."""

import copy
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from yoloyard.common.device import Precision, free_bytes, release_memory, repeated_shapes
from yoloyard.common.errors import TooLittleMemoryError
from yoloyard.common.structures import Batch, images_to_float
from yoloyard.config.settings import TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.models.detector import Detector
from yoloyard.training.engine.checkpointing import checkpoint_activations
from yoloyard.training.engine.compilation import shapes_vary
from yoloyard.training.engine.engine import Engine
from yoloyard.training.engine.multi_scale import LARGEST
from yoloyard.training.setup.starting_point import freeze, set_training_mode

log = logging.getLogger(__name__)

LEFT_FREE = 0.1  # of the device's memory
STEPS = 2  # from the second one on the optimizer has its state

Measure = Callable[[int], int | None]  # bytes at the peak of a step with so many images; None if they don't fit


def find_batch(
    config: TrainConfig, detector: Detector, device: torch.device, precision: Precision, boxes: int, processes: int
) -> int:
    """The batch of all processes, by steps on this one's device; a line says what was found.

    `boxes` is the largest number of boxes that an image is padded to. On a CPU, and where torch can't tell how much
    memory a step takes, it is the default. The detector stays as it is, and so do the random numbers.
    """
    memory = torch.get_device_module(device)
    default = max(TrainConfig().batch // processes, 1) * processes
    if not hasattr(memory, "max_memory_reserved"):
        why = "means nothing on a CPU" if device.type == "cpu" else f"can't be found on {device.type}"
        log.info(f"batch auto {why}: {default} is used")
        return default
    release_memory(device)
    total, free = memory.mem_get_info(device)[1], free_bytes(device) or 0
    limit = free - int(LEFT_FREE * total)
    with torch.random.fork_rng([device], device_type=device.type), repeated_shapes(not shapes_vary(config)):
        of_image = saved_bytes(config, detector, device, precision)
        measure = step_peaks(config, detector, device, precision, boxes, memory)
        images, peak, tried = largest_batch(limit, max(config.optimization.nbs // processes, 1), of_image, measure)
    release_memory(device)
    log.info(
        f"batch auto: {images * processes} images, {images} on each device; of the steps that were tried "
        f"({', '.join(map(str, tried))} images) this one took {peak / 1e9:.1f} GB of {total / 1e9:.1f} GB"
    )
    return images * processes


def largest_batch(limit: int, nominal: int, of_image: int, measure: Measure) -> tuple[int, int, list[int]]:
    """The most images up to `nominal` whose peak is at most `limit` bytes, that peak, and what was measured.

    `of_image`, the bytes of an image's maps, says which second step to try; the line through both peaks gives the
    answer, and a third step checks it. Raises TooLittleMemoryError if one image is too much.
    """
    tried: dict[int, int | None] = {}

    def fits(images: int) -> bool:
        if images not in tried:
            tried[images] = measure(images)
        peak = tried[images]
        return peak is not None and peak <= limit

    if not fits(1):
        raise TooLittleMemoryError(
            "the device has too little memory even for one image: lower --imgsz, take a smaller --model or "
            "--checkpoint-activations"
        )
    first = tried[1] or 0
    second = min(max(1 + (limit - first) // max(2 * of_image, 1), 2), nominal)  # half of what might fit
    while second > 1 and not fits(second):
        second //= 2
    slope = ((tried[second] or 0) - first) / (second - 1) if second > 1 else of_image
    images = max(min(1 + int((limit - first) / max(slope, 1)), nominal), second)
    while not fits(images):
        images = max(images - max(images // 16, 1), second)
    return images, tried[images] or 0, list(tried)


def step_peaks(
    config: TrainConfig, detector: Detector, device: torch.device, precision: Precision, boxes: int, memory: Any
) -> Measure:
    """What measures whole steps, with the optimizer's state; `memory` is the module of the device's kind in torch."""
    side = largest_side(config, detector)

    def measure(images: int) -> int | None:
        optimizer = config.optimization.optimizer
        optimizer = "AdamW" if optimizer == "auto" else optimizer  # which keeps the most
        optimization = dataclasses.replace(config.optimization, nbs=images, optimizer=optimizer)
        own = dataclasses.replace(config, batch=images, multi_scale=False, optimization=optimization)
        release_memory(device)
        memory.reset_peak_memory_stats(device)
        model = on_device(detector, config, device)
        criterion, gains = build_criterion(model.head, own, free_bytes(device))
        engine = Engine(model, criterion, gains, precision, own, batches_per_epoch=10**6)
        try:
            for seed in range(STEPS):
                engine.step(noise(images, side, boxes, detector.num_classes, seed))
        except TooLittleMemoryError:
            return None
        return None if engine.micro_batch else memory.max_memory_reserved(device)

    return measure


def saved_bytes(config: TrainConfig, detector: Detector, device: torch.device, precision: Precision) -> int:
    """Bytes of the maps that a forward of one image keeps for the backward pass."""
    model, side = on_device(detector, config, device), largest_side(config, detector)
    sizes = {tensor.untyped_storage().data_ptr(): 0 for tensor in (*model.parameters(), *model.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    images = images_to_float(noise(1, side, 1, 1, 0).images.to(device))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precision.autocast():
        maps = model(images)  # while they are there no storage takes the place of another one
    del maps
    return sum(sizes.values())


def on_device(detector: Detector, config: TrainConfig, device: torch.device) -> Detector:
    """A copy of the detector as a run trains it."""
    model: Detector = copy.deepcopy(detector).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    freeze(model, config.freeze)
    set_training_mode(model)
    if config.checkpoint_activations:
        checkpoint_activations(model)
    return model


def largest_side(config: TrainConfig, detector: Detector) -> int:
    """Of a training image, in pixels."""
    return detector.input_size(int(config.imgsz * (LARGEST if config.multi_scale else 1)))


def noise(images: int, side: int, boxes: int, num_classes: int, seed: int) -> Batch:
    """A batch that costs what a true one costs at most."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, side, side, 3), dtype=torch.uint8, generator=generator)
    corners = torch.rand((images, boxes, 2), generator=generator) * side * 0.8
    labels = torch.randint(0, num_classes, (images, boxes), generator=generator)
    boxes_xyxy = torch.cat((corners, corners + side * 0.1), dim=2)
    ignore = torch.zeros(images, boxes, dtype=torch.bool)
    return Batch(pixels.permute(0, 3, 1, 2), boxes_xyxy, labels, ignore, list(range(images)), [None] * images)
