"""`--batch auto`: the largest batch up to the nominal one that leaves a tenth of the device's memory free."""

import copy
import dataclasses
import logging
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from yoloyard.common.device import Precision, free_bytes, release_memory, repeated_shapes
from yoloyard.common.errors import TooLittleMemoryError, memory_line, no_image_fits
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


def find_batch(
    config: TrainConfig, detector: Detector, device: torch.device, precision: Precision, boxes: int, processes: int
) -> int:
    """The batch of all processes, by steps on this one's device; a line says what was found.

    `boxes` is the largest number of boxes that an image is padded to. On a CPU, and where torch can't tell how much
    memory a step takes, it is the default. The detector stays as it is, and so do the random numbers.
    Raises TooLittleMemoryError.
    """
    memory = torch.get_device_module(device)
    default = max(TrainConfig().batch // processes, 1) * processes
    if not hasattr(memory, "max_memory_reserved"):
        why = "means nothing on a CPU" if device.type == "cpu" else f"can't be found on {device.type}"
        log.info(f"batch auto {why}: {default} is used")
        return default
    release_memory(device)
    free, total = memory.mem_get_info(device)
    limit, most = free - int(LEFT_FREE * total), max(config.optimization.nbs // processes, 1)
    arguments = config, detector, device, precision
    with torch.random.fork_rng([device], device_type=device.type), repeated_shapes(not shapes_vary(config)):
        peaks = largest_batch(limit, most, partial(saved_bytes, *arguments), partial(step_peak, *arguments, boxes))
    release_memory(device)
    images = max(images for images, peak in peaks.items() if peak <= limit)
    log.info(
        f"batch auto: {images * processes} images, {images} on each device; of the steps that were tried "
        f"({', '.join(map(str, peaks))} images) this one took {peaks[images] / 1e9:.1f} GB of {total / 1e9:.1f} GB"
    )
    return images * processes


def largest_batch(limit: int, most: int, of_image: Callable[[], int], step: Callable[[int], float]) -> dict[int, float]:
    """The peaks in bytes of the steps that were tried, by images; the largest one up to `limit` is what is looked for.

    `step(images)` gives such a peak, infinity where it does not fit at all. `of_image()`, the bytes of an image's maps,
    is the least that an image takes. It says which second step to try, up to `most` images; the line through both
    peaks gives the third, which is checked.
    Raises TooLittleMemoryError if one image is too much.
    """
    peaks: dict[int, float] = {}

    def fits(images: int) -> bool:
        if images not in peaks:
            peaks[images] = step(images)
        return peaks[images] <= limit

    if not fits(1):
        raise TooLittleMemoryError(no_image_fits(f"{peaks[1] / 1e9:.1f} GB of {limit / 1e9:.1f} GB"))
    at_least = max(of_image(), 1)
    second = min(max(1 + int((limit - peaks[1]) / (2 * at_least)), 2), most)  # half of what might fit
    while not fits(second):
        second //= 2
    if second > 1:
        slope = max((peaks[second] - peaks[1]) / (second - 1), at_least)
        images = min(second + int((limit - peaks[second]) / slope), most)
        while not fits(images):
            images = max(images - max(images // 16, 1), second)
    return peaks


def step_peak(
    config: TrainConfig, detector: Detector, device: torch.device, precision: Precision, boxes: int, images: int
) -> float:
    """The most bytes that torch took of the device in whole steps with so many images; infinity if they don't fit."""
    memory = torch.get_device_module(device)
    optimizer = config.optimization.optimizer
    optimizer = "AdamW" if optimizer == "auto" else optimizer  # which keeps the most
    optimization = dataclasses.replace(config.optimization, nbs=images, optimizer=optimizer)
    own = dataclasses.replace(config, batch=images, multi_scale=False, optimization=optimization)
    release_memory(device)
    memory.reset_peak_memory_stats(device)
    try:
        model = on_device(detector, config, device)
        criterion, gains = build_criterion(model.head, own, free_bytes(device))
        engine = Engine(model, criterion, gains, precision, own, batches_per_epoch=10**6)
        for _ in range(STEPS):
            engine.step(noise(images, largest_side(config, detector), boxes, detector.num_classes))
    except Exception as error:
        if isinstance(error, TooLittleMemoryError) or memory_line(error):
            return math.inf
        raise
    return math.inf if engine.micro_batch < images else float(memory.max_memory_reserved(device))


def saved_bytes(config: TrainConfig, detector: Detector, device: torch.device, precision: Precision) -> int:
    """Bytes of the maps that a forward of one image keeps for the backward pass."""
    model, sizes = on_device(detector, config, device), dict[int, int]()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = images_to_float(noise(1, largest_side(config, detector), 1, 1).images.to(device))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precision.autocast():
        maps = model(images)  # while they are there no storage takes the place of another one
    del maps
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    return sum(size for place, size in sizes.items() if place not in own)


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


def noise(images: int, side: int, boxes: int, num_classes: int) -> Batch:
    """A batch that costs what a true one costs at most."""
    pixels = torch.randint(0, 256, (images, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    corners, labels = torch.rand(images, boxes, 2) * side * 0.8, torch.randint(0, num_classes, (images, boxes))
    boxes_xyxy, ignore = torch.cat((corners, corners + side * 0.1), dim=2), torch.zeros(images, boxes, dtype=torch.bool)
    return Batch(pixels, boxes_xyxy, labels, ignore, list(range(images)), [None] * images)
