"""What the rooms exchange: samples, batches, detections, and the transform back to the original image.

Shapes: B batch, M boxes per image (padded), n boxes of one image, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageTransform:
    """How an original image was scaled and padded to the network's input; maps boxes back.

    input_x = original_x * scale_x + pad_left, input_y = original_y * scale_y + pad_top.
    """

    original_height: int
    original_width: int
    scale_x: float
    scale_y: float
    pad_left: float
    pad_top: float

    def to_original(self, boxes_xyxy: Tensor) -> Tensor:
        """Map (n, 4) xyxy input pixels to original pixels, clipped to the image."""
        pad = boxes_xyxy.new_tensor([self.pad_left, self.pad_top] * 2)
        scale = boxes_xyxy.new_tensor([self.scale_x, self.scale_y] * 2)
        limit = boxes_xyxy.new_tensor([self.original_width, self.original_height] * 2)
        return ((boxes_xyxy - pad) / scale).clamp(min=0).minimum(limit)


@dataclass
class Sample:
    """One image and its boxes during augmentation."""

    image: np.ndarray  # uint8 or uint16 (H, W, channels), as `PixelSpec` says
    boxes_xyxy: np.ndarray  # float32 (n, 4), pixels of `image`
    labels: np.ndarray  # int64 (n,)
    ignore: np.ndarray  # bool (n,), crowd and difficult
    image_id: int
    transform: ImageTransform | None = None
    source_ids: tuple[int, ...] = ()  # all images that a mosaic or mixup was made of


@dataclass
class Batch:
    """What the loader hands to the trainer and the evaluator."""

    images: Tensor  # uint8 or uint16 (B, channels, H, W), channels_last
    boxes: Tensor  # float32 (B, M, 4), xyxy pixels of the batch image, padded with zeros
    labels: Tensor  # int64 (B, M), padded with -1
    ignore: Tensor  # bool (B, M)
    image_ids: list[int]
    transforms: list[ImageTransform | None]
    source_ids: tuple[int, ...] = ()  # of training batches: all images that are part of it

    def to(self, device: torch.device) -> Batch:
        """This batch with its tensors on `device`; `send` says when the host waits for that."""
        preserve, last = torch.preserve_format, torch.channels_last
        return self._with(lambda tensor: send(tensor, device, last if tensor.ndim == 4 else preserve))

    def pin_memory(self) -> Batch:
        """This batch in pinned memory, from which a GPU copies faster; torch's loader calls it."""
        return self._with(Tensor.pin_memory)

    def rows(self, rows: slice) -> Batch:
        """The batch of these of its images alone."""
        part = self._with(lambda tensor: tensor[rows])
        return replace(part, image_ids=self.image_ids[rows], transforms=self.transforms[rows])

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        images, boxes, labels, ignore = map(change, (self.images, self.boxes, self.labels, self.ignore))
        return replace(self, images=images, boxes=boxes, labels=labels, ignore=ignore)


@dataclass
class Detections:
    """The boxes that were detected in one image."""

    boxes: Tensor  # float32 (n, 4), xyxy pixels of the original image
    scores: Tensor  # float32 (n,), 0..1, descending
    labels: Tensor  # int64 (n,)

    def __len__(self) -> int:
        return len(self.scores)


def send(tensor: Tensor, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    """`tensor` on `device`. The host waits for the copy unless `tensor` may be freed before it is finished.

    That is safe only for CUDA and pinned memory, whose allocator reuses a block after the copies from it are finished.
    Other devices would read whatever is written into that memory next (pytorch#139550).
    """
    non_blocking = device.type == "cuda" and tensor.is_pinned()
    return tensor.to(device, non_blocking=non_blocking, memory_format=memory_format)


def images_to_float(images: Tensor) -> Tensor:
    """uint8 or uint16 (B, C, H, W) to float32 0..1: the one place where pixels are scaled."""
    if images.dtype == torch.uint16:
        return images.to(torch.float32) / 65535
    return images / 255  # in one pass
