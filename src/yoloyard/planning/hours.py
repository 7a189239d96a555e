"""How long a training takes on a device: a roofline of the step, its loader, its exchange of gradients, and validation.

Arithmetic and memory are added, not the larger one taken: operators run one after another, and in these networks those
that move much memory (normalisation, activation, concatenation) are not those with products. A GPU waits for launches
that take longer than both. Loader processes work beside the step; without them, as on a processor, loading adds to it.
"""

import functools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from yoloyard.common.image_size import shape_of
from yoloyard.config.settings import TrainConfig
from yoloyard.data.index.index import Index
from yoloyard.data.loading.epoch_plan import plan_epochs
from yoloyard.planning.figures import Estimate, Gpu, Precision, StepCost

TABLE = Path(__file__).with_name("efficiencies.toml")
KEPT_IMAGES = 512  # of a smaller set all decoded images are kept (data/loading/loader.py)


@dataclass(frozen=True)
class Images:
    """The data of a training: its images or, with `--tile`, its tiles."""

    train: int  # of an epoch
    val: int
    train_pixels: float = 640 * 480  # decoded for each of them, on average
    val_pixels: float = 640 * 480
    channels: int = 3

    @classmethod
    def of(cls, train: Index, val: Index, config: TrainConfig) -> Self:
        """Those of a run on these splits, which are tiles already where it cuts its images."""

        def decoded(split: Index, count: int) -> float:  # once for all tiles of an image
            share = min(1.0, len(split.whole) / count) if split.tiling else 1.0
            return share * split.whole.mean_pixels()

        places = len(plan_epochs(train, config))
        return cls(places, len(val), decoded(train, places), decoded(val, len(val)), train.pixels.channels)


@dataclass(frozen=True)
class Correction:
    """Measured over planned, of a run on such a device. 1.0 where the run says nothing about it."""

    step: float = 1.0  # seconds of the device in a step
    loader: float = 1.0  # seconds to make a sample
    rest: float = 1.0  # seconds of validation, saves, start and report
    memory: float = 1.0  # peak of a GPU
    run: str = ""  # its folder
    time: str = ""  # of the calibration, ISO 8601


@dataclass(frozen=True)
class Seconds:
    """What a run is made of."""

    device: float  # of a step, without what follows
    exchange: float  # of a step: what of the all-reduce the backward pass doesn't hide
    loader: float  # of a step, if nothing else took time
    step: float  # all together
    validation: float  # one of all images
    bound: str  # what a step takes most of its time for


@functools.cache
def assumed() -> Mapping[str, float]:
    """The values of efficiencies.toml by their names."""
    return {name: float(row["value"]) for name, row in tomllib.loads(TABLE.read_text(encoding="utf-8")).items()}


def arithmetic(gpu: Gpu, precision: Precision) -> tuple[str, float]:
    """The type in which a device computes products, and how many it reaches in a second.

    Mixed precision is bfloat16 where the device has it, else float16; float32 convolutions are TF32 by torch's default.
    """
    types = ("bfloat16", "float16", "float32") if precision == "amp" else ("tf32", "float32")
    dtype = next(each for each in types if each in gpu.flops)
    kind = "cpu" if is_cpu(gpu) else dtype if dtype in ("tf32", "float32") else "tensor"
    return dtype, gpu.flops[dtype] * assumed()[kind]


def is_cpu(device: Gpu) -> bool:
    """Is it a processor?"""
    return not device.capability


def seconds_of(
    cost: StepCost, config: TrainConfig, images: Images, gpu: Gpu, count: int, nodes: int, cores: int, by: Correction
) -> Seconds:
    """The times of a step and of a validation. `cost` is of a micro-batch; `cores` are those of each host."""
    table, devices = assumed(), count * nodes
    share = min(config.batch, images.train) / devices  # images of a device
    parts = math.ceil(share / cost.images)
    scale = share / cost.images
    dtype, products = arithmetic(gpu, cost.precision)
    # a processor's operators take as long for a value of two bytes as for one of four
    bandwidth = gpu.bandwidth * (table["bandwidth"] if not is_cpu(gpu) else 0.5 if dtype == "bfloat16" else 1.0)
    times = {
        "arithmetic": cost.flops * scale / products,
        "memory": cost.bytes_moved * scale / bandwidth,
        "launches": cost.operators * parts * table["cpu_operator" if is_cpu(gpu) else "launch"],
    }
    busy, launches = times["arithmetic"] + times["memory"], times["launches"]
    device = by.step * (busy + launches if is_cpu(gpu) else max(busy, launches))
    if not is_cpu(gpu) and busy > launches:  # hidden
        times["launches"] = 0.0

    is_decoded_once = config.cache is not None or images.train <= KEPT_IMAGES
    augmented = math.prod(shape_of(config.imgsz)) * table["augment"]
    decoded = images.train_pixels * table["decode"]
    sample = by.loader * (augmented + decoded / (config.epochs if is_decoded_once else 1))
    most = 0 if is_cpu(gpu) else min(config.workers, max(1, cores // count))
    processes = 2 ** int(math.log2(most)) if most else 0  # of each device, as a run chooses them
    loader = share * sample / max(1, processes)
    exchange = max(0.0, _exchange_seconds(cost, config, gpu, count, nodes) - device * 2 / 3)
    together = device + exchange
    step = max(together, loader) if processes else together + loader
    bounds = {name: by.step * each for name, each in times.items()}
    bounds |= {"exchange": exchange, "loader": loader if not processes or loader > together else 0.0}

    evaluated = images.val / devices
    forward = device / share * table["validation"]
    decoding = by.loader * images.val_pixels * table["decode"] / max(1, processes)
    validation = evaluated * (max(forward, decoding) if processes else forward + decoding)
    validation += images.val * table["evaluation"]
    return Seconds(device, exchange, loader, step, validation, max(bounds, key=lambda name: bounds[name]))


def estimate(
    cost: StepCost,
    config: TrainConfig,
    images: Images,
    gpu: Gpu,
    count: int = 1,
    nodes: int = 1,
    cores: int = 8,
    correction: Correction | None = None,
) -> Estimate:
    """How a run of `config` goes on `count` of these GPUs in each of `nodes` hosts with so many cores.

    `cost` is of the micro-batch that is used; `correction` is that of this device, if there is one (`calibrate`).
    """
    by = correction or Correction()
    seconds = seconds_of(cost, config, images, gpu, count, nodes, cores, by)
    batch = min(config.batch, images.train)
    steps = math.ceil(images.train / batch) * config.epochs
    hours = (steps * seconds.step + rest_seconds(seconds, config, by)) / 3600
    return Estimate(
        gpu=gpu,
        count=count,
        nodes=nodes,
        micro_batch=cost.images,
        recomputed=cost.recomputed,
        peak_bytes=round(cost.peak_bytes * by.memory),
        steps=steps,
        images_per_second=batch / seconds.step,
        hours=hours,
        bound=seconds.bound,
        kind="measured" if correction else "modelled",
    )


def rest_seconds(seconds: Seconds, config: TrainConfig, by: Correction) -> float:
    """Seconds of a run beside its steps: validations, one more of the best weights, start and report."""
    validations = math.ceil(config.epochs / config.val_period) + 1
    return by.rest * (validations * seconds.validation + assumed()["start"])


def _exchange_seconds(cost: StepCost, config: TrainConfig, gpu: Gpu, count: int, nodes: int) -> float:
    """Of the all-reduce of gradients, by rings in each host, then between hosts; on average of a step.

    n members of a ring send 2 (n - 1) times an n-th of the bytes. Where an update has several batches, gradients are
    exchanged once.
    """
    table, size = assumed(), cost.gradients_bytes * (0.5 if config.compress_gradients else 1.0)
    inside = 2 * (count - 1) * size / count / (gpu.link * table["link"])
    between = 2 * (nodes - 1) * (size / nodes / table["network"] + table["ring_step"])
    return (inside + between) / max(round(config.optimization.nbs / config.batch), 1)
