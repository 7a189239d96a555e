"""What all runtimes have in common: from a batch of images to boxes and scores."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from yoloyard.common.device import Precision
from yoloyard.models.heads import Found


class Runtime(Protocol):
    """A network that finds boxes, whatever computes it. Letterbox, suppression and thresholds are not its business."""

    metadata: Mapping[str, Any]  # as a weights file has it; an exported file's has `file`, too (see `metadata.py`)
    names: tuple[str, ...]  # of the classes, one each
    strides: tuple[int, ...]  # pixels of a cell, ascending
    device: torch.device  # where images are given
    precision: Precision  # of its arithmetic; torch.int8 for a quantised file
    fixed_shape: tuple[int, int] | None  # the only (H, W) that the network takes; None: all multiples of the stride
    suppression: bool  # must overlapping boxes be dropped? Not if it finds each object once
    max_batch: int | None  # most images that the network takes at once; None: any number

    def candidates(self, images: Tensor, conf: float, multi_label: bool) -> Found:
        """Boxes with a score above `conf` in `images`, uint8 or uint16 (B, channels, H, W) on `device`.

        With `multi_label` a box comes once for each such class, else only for its best one. Raises UserError for a
        batch or a shape that the network can't take.
        """
        ...

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """What an exported file gives of `images`, float32 (B, channels, H, W), 0 .. 1, by the names in `metadata.py`.

        Weights of torch give `boxes` and `scores`. Raises UserError for a batch or a shape that it can't take.
        """
        ...
