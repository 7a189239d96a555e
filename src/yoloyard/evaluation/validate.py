"""From a network and a loader to detections in the pixels of the original images.

The one way in which training, `val` and the benchmarks make the predictions that are scored.
"""

import logging
import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from yoloyard.common.errors import TooLittleMemoryError, memory_line, no_image_fits
from yoloyard.common.log import ONCE
from yoloyard.common.nms import KEEPS_ALL, suppress_found
from yoloyard.common.structures import Batch, Detections, ImageTransform, send
from yoloyard.config.settings import EvaluationConfig
from yoloyard.data.index.tiled import Tiling
from yoloyard.evaluation.seams import WholeImages
from yoloyard.runtimes.runtime import Runtime

log = logging.getLogger(__name__)

PATH_NAMES = {"on": "with suppression", "off": "without suppression"}  # by `--suppression`


def other_path(suppression: str) -> str:
    """`off` for `on`, and the other way round."""
    return "off" if suppression == "on" else "on"


@torch.inference_mode()
def detect(
    network: Runtime,
    images: Tensor,
    transforms: Iterable[ImageTransform | None],
    settings: EvaluationConfig,
    multi_label: bool,
) -> list[Detections]:
    """Detections of each image, on the CPU. `images` uint8 or uint16 (B, channels, H, W) on the network's device.

    A network that needs no suppression gives several labels a box in any case, as published.
    """
    iou = settings.iou if network.suppression else KEEPS_ALL
    where, boxes, scores, labels = network.candidates(images, settings.conf, multi_label or not network.suppression)
    found = suppress_found(
        len(images), where, boxes, scores, labels, iou, settings.max_det, network.precision.has_cpu_paths
    )
    return [
        Detections(transform.to_original(each[0]) if transform else each[0], *each[1:])
        for each, transform in zip(found, transforms, strict=True)
    ]


def predict_all(
    network: Runtime,
    loader: Iterable[Batch],
    settings: EvaluationConfig,
    goes_on: Callable[[int], bool] = lambda images: True,
    multi_label: bool = True,
    tiling: Tiling | None = None,
) -> dict[int, Detections]:
    """Detections by image id, with `multi_label` several labels a box. `goes_on` is told how many images are done.

    Where it says no, this ends with what was found until then. Where the images of `loader` are tiles, by `tiling`,
    detections are those of whole images, merged over seams. Raises TooLittleMemoryError.
    """
    predictions: dict[int, Detections] = {}
    iou = settings.iou if network.suppression else KEEPS_ALL
    of_tiles = WholeImages(tiling, iou, settings.max_det) if tiling is not None else None
    at_once = network.max_batch or sys.maxsize  # images; fewer where they exhaust the memory
    for batch in loader:
        found: list[Detections] = []
        while len(found) < len(batch.images):
            part = batch.rows(slice(len(found), len(found) + at_once))
            try:
                # the true boxes stay where they are counted
                images = send(part.images, network.device, torch.channels_last)
                found += detect(network, images, part.transforms, settings, multi_label)
            except Exception as error:
                if not memory_line(error):
                    raise
                if len(part.images) == 1:
                    raise TooLittleMemoryError(no_image_fits(str(error), "lower --imgsz")) from error
                at_once = (len(part.images) + 1) // 2
                line = f"out of memory in the validation: it goes on with {at_once} images at a time; figures stay"
                log.warning(line, extra=ONCE)
        done = dict(zip(batch.image_ids, found, strict=True))
        done = of_tiles(done) if of_tiles is not None else done
        predictions |= done
        if not goes_on(len(done)):
            break
    return predictions
