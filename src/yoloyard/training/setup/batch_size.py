"""`--batch auto`: the largest batch up to the nominal one that leaves a tenth of the device's memory free."""

import copy
import dataclasses
import logging
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from yoloyard.common.device import Precision, free_bytes, release_memory, repeated_shapes, same_random_numbers
from yoloyard.common.errors import TooLittleMemoryError, memory_line, no_image_fits
from yoloyard.common.image_size import ImageSize, shape_of
from yoloyard.common.log import bytes_text
from yoloyard.common.structures import Batch
from yoloyard.config.settings import TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.models.detector import Detector
from yoloyard.training.engine.checkpointing import checkpoint_activations
from yoloyard.training.engine.compilation import shapes_vary
from yoloyard.training.engine.engine import Engine
from yoloyard.training.engine.multi_scale import largest_size
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
    with same_random_numbers(device), repeated_shapes(not shapes_vary(config)):
        peaks = largest_batch(limit, most, partial(measured_step, config, detector, device, precision, boxes))
    release_memory(device)
    images = max(images for images, peak in peaks.items() if peak <= limit)
    log.info(
        f"batch auto: {images * processes} images, {images} on each device; of the steps that were tried "
        f"({', '.join(map(str, peaks))} images) this one took {bytes_text(peaks[images])} of {bytes_text(total)}"
    )
    return images * processes


def largest_batch(limit: int, most: int, step: Callable[[int], tuple[float, int]]) -> dict[int, float]:
    """The peaks in bytes of the steps that were tried, by images; the largest one up to `limit` is what is looked for.

    `step` is `measured_step`. What a step of one image saves says which second one to try, up to `most` images; the
    line through both gives the third, which is checked. Raises TooLittleMemoryError if one image is too much.
    """
    tried = {1: step(1)}
    first, saved = tried[1]
    if first > limit:
        raise TooLittleMemoryError(no_image_fits(f"{bytes_text(first)} of {bytes_text(limit)}"))

    def fits(images: int) -> bool:
        if images not in tried:
            tried[images] = step(images)
        return tried[images][0] <= limit

    second = min(max(1 + int((limit - first) / max(2 * saved, 1)), 2), most)  # half of what might fit
    while not fits(second):
        second //= 2
    if second > 1:
        peak, more = tried[second]
        slope = max(peak - first, more - saved, 1) / (second - 1)  # the first peak may not be of maps
        images = min(second + int((limit - peak) / slope), most)
        while not fits(images):
            images = max(images - max(images // 16, 1), second)
    return {images: peak for images, (peak, _) in tried.items()}


def measured_step(
    config: TrainConfig, detector: Detector, device: torch.device, precision: Precision, boxes: int, images: int
) -> tuple[float, int]:
    """The most bytes that torch took of the device in whole steps, and those of the maps that a step saved.

    Infinity and 0 if so many images don't fit.
    """
    memory, optimization, maps = torch.get_device_module(device), config.optimization, dict[int, int]()
    optimizer = "AdamW" if optimization.optimizer == "auto" else optimization.optimizer  # which keeps the most
    optimization = dataclasses.replace(optimization, nbs=images, optimizer=optimizer)
    own = dataclasses.replace(config, batch=images, multi_scale=False, optimization=optimization)
    imgsz = largest_size(config, max(detector.strides))

    def pack(tensor: Tensor) -> Tensor:
        maps[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    release_memory(device)
    memory.reset_peak_memory_stats(device)
    try:
        model: Detector = copy.deepcopy(detector).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        freeze(model, config.freeze)
        set_training_mode(model)
        if config.checkpoint_activations:
            checkpoint_activations(model)
        criterion, gains = build_criterion(model.head, own, free_bytes(device))
        engine = Engine(model, criterion, gains, precision, own, batches_per_epoch=10**6)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            for _ in range(STEPS):
                maps.clear()
                engine.step(noise(images, imgsz, boxes, detector.num_classes, detector.image_channels))
    except Exception as error:
        if isinstance(error, TooLittleMemoryError) or memory_line(error):
            return math.inf, 0
        raise
    for weight in engine.parameters:  # which are saved, too
        maps.pop(weight.untyped_storage().data_ptr(), None)
    return (math.inf, 0) if engine.micro_batch < images else (memory.max_memory_reserved(device), sum(maps.values()))


def noise(images: int, imgsz: ImageSize, boxes: int, num_classes: int, channels: int = 3) -> Batch:
    """A batch that costs what a true one costs at most."""
    shape = shape_of(imgsz)
    pixels, sides = torch.randint(0, 256, (images, *shape, channels), dtype=torch.uint8), torch.tensor(shape[::-1])
    corners, labels = torch.rand(images, boxes, 2) * sides * 0.8, torch.randint(0, num_classes, (images, boxes))
    boxes_xyxy = torch.cat((corners, corners + sides * 0.1), dim=2)
    ignore = torch.zeros(images, boxes, dtype=torch.bool)
    return Batch(pixels.permute(0, 3, 1, 2), boxes_xyxy, labels, ignore, list(range(images)), [None] * images)
