"""A detector in torch as a runtime."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from yoloyard import cpu
from yoloyard.common.device import Precision
from yoloyard.common.structures import images_to_float
from yoloyard.models.heads import Found
from yoloyard.runtimes.metadata import BOXES, SCORES


class Network:
    """A fused copy of `detector` on `device`; `detector` is left as it is. `suppression` is that of `fused`.

    `paths` are those of the detector's head. Raises UsageError as `fused` does.
    """

    fixed_shape: tuple[int, int] | None = None
    max_batch: int | None = None

    def __init__(
        self,
        detector: nn.Module,
        device: torch.device,
        precision: Precision,
        metadata: Mapping[str, Any] | None = None,
        suppression: bool | None = None,
    ) -> None:
        self.metadata = metadata or {}
        self.names: tuple[str, ...] = tuple(self.metadata.get("names") or map(str, range(detector.num_classes)))  # type: ignore[arg-type]
        self.strides: tuple[int, ...] = detector.strides  # type: ignore[assignment]
        self.device = device
        self.precision = precision
        self.paths: tuple[str, ...] = detector.head.paths  # type: ignore[assignment, union-attr]
        fused: nn.Module = detector.fused(suppression)  # type: ignore[operator]
        self.suppression: bool = fused.head.needs_suppression  # type: ignore[assignment, union-attr]
        cpu.prepare_evaluation(fused, precision)
        self._fused = fused.to(device)  # whose parts may lie on several

    @torch.inference_mode()
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """As `Runtime.outputs` says."""
        images = images.to(self.device, memory_format=torch.channels_last)
        with self.precision.autocast():
            maps = self._fused(images)
        boxes_xyxy, scores = self._fused.decode(maps)  # type: ignore[operator]
        return {BOXES: boxes_xyxy, SCORES: scores}

    def candidates(self, images: Tensor, conf: float, multi_label: bool) -> Found:
        """As `Runtime.candidates` says."""
        with self.precision.autocast():
            maps = self._fused(images_to_float(images))
        found: Found = self._fused.decode_above(maps, conf, multi_label)  # type: ignore[operator]
        return found
