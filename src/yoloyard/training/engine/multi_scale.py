"""Batches of another size each (`--multi-scale`), resized on the device."""

import math
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from yoloyard.common.image_size import ImageSize, of_shape, rounded_up, shape_of
from yoloyard.common.structures import Batch
from yoloyard.config.settings import TrainConfig

SMALLEST, LARGEST = 0.5, 1.5  # times imgsz


def largest_size(config: TrainConfig, stride: int) -> ImageSize:
    """The size of the largest batches of a run."""
    factor = LARGEST if config.multi_scale else 1
    return rounded_up(of_shape([int(side * factor) for side in shape_of(config.imgsz)]), stride)


def draw_side(imgsz: int, stride: int, seed: int, epoch: int, number: int) -> int:
    """The longer side in pixels for batch `number`, the same on all ranks. Source: YOLOv5 7.0, multi-scale training."""
    low, high = math.ceil(SMALLEST * imgsz / stride), math.floor(LARGEST * imgsz / stride)
    return stride * int(np.random.default_rng([seed, epoch, 2, number]).integers(low, high + 1))


def vary_size(batch: Batch, config: TrainConfig, stride: int, epoch: int, number: int) -> Batch:
    """The batch resized (bilinear) as drawn for it, boxes with it; the batch itself without `multi_scale`."""
    if not config.multi_scale:
        return batch
    longer = max(shape_of(config.imgsz))
    side = draw_side(longer, stride, config.seed, epoch, number)
    return resize(batch, side / longer, stride)


def resize(batch: Batch, factor: float, stride: int) -> Batch:
    """Images (B, channels, H, W) `factor` times larger, both sides rounded up to the stride; boxes with them."""
    height, width = batch.images.shape[2:]
    new_height, new_width = (math.ceil(round(side * factor / stride, 6)) * stride for side in (height, width))
    if (new_height, new_width) == (height, width):
        return batch
    images = functional.interpolate(batch.images.float(), (new_height, new_width), mode="bilinear")
    boxes = batch.boxes.clone()
    boxes[..., 0::2] *= new_width / width
    boxes[..., 1::2] *= new_height / height
    images = images.round_().to(batch.images.dtype, memory_format=torch.channels_last)
    return replace(batch, images=images, boxes=boxes)
