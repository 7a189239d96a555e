"""From a detector and a loader to detections in the pixels of the original images.

The one way in which training, `val` and the benchmarks make the predictions that are scored.
"""

import logging
import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from yoloyard import cpu
from yoloyard.common.device import Precision
from yoloyard.common.errors import TooLittleMemoryError, memory_line, no_image_fits
from yoloyard.common.log import ONCE
from yoloyard.common.nms import suppress_found
from yoloyard.common.structures import Batch, Detections, ImageTransform, images_to_float, send
from yoloyard.config.settings import EvaluationConfig

log = logging.getLogger(__name__)


def fused_for(detector: torch.nn.Module, precision: Precision) -> torch.nn.Module:
    """A copy of the detector for evaluation alone, made for the code paths of `precision`."""
    fused: torch.nn.Module = detector.fused()  # type: ignore[operator]
    cpu.prepare_evaluation(fused, precision)
    return fused


@torch.inference_mode()
def detect(
    detector: torch.nn.Module,
    images: Tensor,
    transforms: Iterable[ImageTransform | None],
    settings: EvaluationConfig,
    precision: Precision,
    multi_label: bool,
) -> list[Detections]:
    """Detections of each image, on the CPU. `images` uint8 (B, 3, H, W) on the detector's device."""
    with precision.autocast():
        maps = detector(images_to_float(images))
    where, boxes, scores, labels = detector.decode_above(maps, settings.conf, multi_label)  # type: ignore[operator]
    found = suppress_found(
        len(images), where, boxes, scores, labels, settings.iou, settings.max_det, precision.has_cpu_paths
    )
    return [
        Detections(transform.to_original(each[0]) if transform else each[0], *each[1:])
        for each, transform in zip(found, transforms, strict=True)
    ]


def predict_all(
    detector: torch.nn.Module,
    loader: Iterable[Batch],
    settings: EvaluationConfig,
    device: torch.device,
    precision: Precision,
    goes_on: Callable[[int], bool] = lambda images: True,
) -> dict[int, Detections]:
    """Detections by image id, several labels a box. `goes_on` is told the number of images of each batch.

    Where it says no, this ends with what was found until then. The detector is left as it is; a fused copy works.
    Raises TooLittleMemoryError.
    """
    fused = fused_for(detector, precision).to(device)  # whose parts may lie on several
    predictions: dict[int, Detections] = {}
    at_once = sys.maxsize  # images; fewer where they exhaust the memory
    for batch in loader:
        found: list[Detections] = []
        while len(found) < len(batch.images):
            part = batch.rows(slice(len(found), len(found) + at_once))
            try:
                images = send(part.images, device, torch.channels_last)  # the true boxes stay where they are counted
                found += detect(fused, images, part.transforms, settings, precision, multi_label=True)
            except Exception as error:
                if not memory_line(error):
                    raise
                if len(part.images) == 1:
                    raise TooLittleMemoryError(no_image_fits(str(error), "lower --imgsz")) from error
                at_once = (len(part.images) + 1) // 2
                line = f"out of memory in the validation: it goes on with {at_once} images at a time; figures stay"
                log.warning(line, extra=ONCE)
        predictions.update(zip(batch.image_ids, found, strict=True))
        if not goes_on(len(found)):
            break
    return predictions
