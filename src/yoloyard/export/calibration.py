"""Training images by which int8 learns the range of each layer, in the form that `predict` gives a network."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yoloyard.common.errors import UserError
from yoloyard.common.image_size import shape_of
from yoloyard.common.log import ONCE
from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.common.structures import images_to_float
from yoloyard.common.tiles import TileSpec
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import read_split, require_images
from yoloyard.data.index.tiled import tiled
from yoloyard.data.loading.batches import ValidationBatches, ValRequest
from yoloyard.data.pixels.augment import minimal_shape
from yoloyard.export.job import Job

log = logging.getLogger(__name__)

CPUINFO = Path("/proc/cpuinfo")  # of Linux
ENOUGH_IMAGES = 32  # with fewer, the extremes of a layer depend on which images they are


@dataclass(frozen=True)
class CalibrationImages:
    """Images float32 (1, channels, H, W), 0 .. 1. Each iteration decodes them again, so they take no memory.

    Iterating raises UserError naming an image that can't be decoded.
    """

    batches: ValidationBatches
    requests: list[ValRequest]  # one for each image

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[np.ndarray]:
        for request in self.requests:
            batch = self.batches[request]
            if isinstance(batch, UserError):
                raise batch
            yield images_to_float(batch.images).contiguous().numpy()


def calibration_images(job: Job) -> CalibrationImages:
    """Images of the training split of `--data`, `--calibration-images` of them: one of each part of the list.

    Of a network of tiles they are tiles with boxes, if there are any. The choice is always the same. A line says so
    where there are fewer. Raises UsageError or UserError for a data set without training images that can be used.
    """
    assert job.config.data is not None  # int8 is refused without
    spec = read_data_yaml(job.config.data)
    index = read_split(spec.with_pixels(PixelSpec.of(job.metadata), job.config.weights), "train")
    require_images(index, spec, "train")
    tiles = tiled(index, tile := TileSpec.of(job.metadata))
    usable = np.flatnonzero(np.diff(tiles.offsets)) if tile else np.arange(len(index))
    usable = usable if len(usable) else np.arange(len(tiles))
    wanted = job.config.calibration_images
    count = min(wanted, len(usable))
    more = f", not with {wanted}" if count < wanted else ""
    what = "training images" if tile is None else "tiles with boxes" if len(usable) < len(tiles) else "tiles"
    line = f"int8 is calibrated with {count} of the {len(usable)} {what} of {spec.path}{more}"
    log.info(line, extra=ONCE)
    if count < ENOUGH_IMAGES:
        log.info(f"with fewer than {ENOUGH_IMAGES} images int8 depends on which they are", extra=ONCE)
    if advice := bfloat16_line():
        log.info(advice, extra=ONCE)
    ends = np.linspace(0, len(usable), count + 1).astype(int)
    chosen = usable[np.random.default_rng(0).integers(ends[:-1], ends[1:])].tolist()
    one_shape = shape_of(job.imgsz) if job.facts.shape or tile else None  # else as little padding as the stride allows
    shapes = [
        one_shape or minimal_shape(height, width, job.imgsz, max(job.facts.strides))
        for height, width in tiles.sizes[chosen].tolist()
    ]
    requests = [([position], shape) for position, shape in zip(chosen, shapes, strict=True)]
    return CalibrationImages(ValidationBatches(tiles, job.imgsz), requests)


def bfloat16_line(cpuinfo: Path = CPUINFO) -> str | None:
    """What to compare int8 with on a CPU whose matrix units compute bfloat16; None on any other, and off Linux.

    There bfloat16 needs about the time of int8 and no calibration. AVX512 alone has instructions for it, too, but
    OpenVINO was slower with them than in float32.
    """
    if not cpuinfo.exists() or "amx_bf16" not in cpuinfo.read_text(encoding="utf-8").split():
        return None
    return (
        "this CPU has AMX: bfloat16 is likely faster here than int8 and loses less; compare it first, with the weights "
        "file (yoloyard val --amp) or OpenVINO's hint INFERENCE_PRECISION_HINT: bf16"
    )
