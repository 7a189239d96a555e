"""`yoloyard plan`: what a training needs, how long it takes on each GPU, what it costs where, and what to take."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yoloyard.common.cores import usable_cores
from yoloyard.common.errors import UsageError
from yoloyard.common.image_size import rounded_up
from yoloyard.config import recipes
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import AUTO, TrainConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.selection import class_numbers, names_of
from yoloyard.data.index.tiled import tile_spec, tiled
from yoloyard.data.loading.batches import training_buckets
from yoloyard.planning.calibrate import correction
from yoloyard.planning.choose import Choice, Demands, Recommendation, ranked, recommend
from yoloyard.planning.figures import Estimate, Gpu, Precision, StepCost
from yoloyard.planning.gpus import gpus, own_devices
from yoloyard.planning.hours import Images, estimate, is_cpu
from yoloyard.planning.prices import all_offers
from yoloyard.planning.trace import BOXES, StepTrace, build_model, trace_steps
from yoloyard.training.setup.dataset import load_splits_again

CLASSES = 80  # where no data.yaml says it
TILES_GIVEN = "with --tile, --images is the number of tiles in an epoch: how many an image has, only the data can say"
VAL_SHARE = 0.2  # of the training images, where the data is not here
CORES_OF_A_GPU = 8  # where an offer doesn't say it
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)
# What a GPU holds beside a step's tensors: context and libraries, and what the allocator can't use. Modelled.
CONTEXT_BYTES, FRAGMENTATION = 0.8e9, 1.08


@dataclass(frozen=True)
class Plan:
    """A training, and what it would be on each device and offer."""

    config: TrainConfig
    images: Images
    kind_of_images: str  # counted, or given where the data is not here
    traces: Mapping[tuple[Precision, bool], StepTrace]  # by precision and whether activations are recomputed; of a GPU
    estimates: list[Estimate]  # on each GPU of the table
    here: list[Estimate]  # on each device of this host
    choices: list[Choice]  # ranked
    demands: Demands
    recommendation: Recommendation
    notes: list[str]

    @property
    def precision(self) -> Precision:
        """That of the training on a GPU."""
        return "amp" if self.config.amp else "float32"

    @property
    def cost(self) -> StepCost:
        """A step with one image."""
        return self.traces[self.precision, self.config.checkpoint_activations].cost(1)

    @functools.cached_property
    def offered(self) -> list[Choice]:
        """The choices that were asked for."""
        return [choice for choice in self.choices if self.demands.allow(choice.offer)]

    def largest(self, gpu: Gpu, recomputed: bool = False) -> int:
        """The largest micro-batch that fits into this GPU's memory."""
        return _largest(self.traces[self.precision, recomputed], gpu, self.precision)

    def document(self) -> dict[str, Any]:
        """The document of `yoloyard plan --json` (docs/json.md)."""
        config, peaks = self.config, self.traces.items()
        return {
            "model": config.model,
            "data": config.data or None,
            "settings": {name: getattr(config, name) for name in ("imgsz", "epochs", "batch", "amp")},
            "images": {"train": self.images.train, "val": self.images.val, "kind": self.kind_of_images},
            "step": {"kind": "traced"} | dataclasses.asdict(self.cost),
            "memory": [
                {
                    "kind": "traced",
                    "precision": precision,
                    "recomputed": recomputed,
                    "images": n,
                    "bytes": trace.peak(n),
                }
                for (precision, recomputed), trace in peaks
                for n in MICRO_BATCHES
            ],
            "gpus": [
                _facts(each)
                | {"largest_micro_batch": self.largest(each.gpu), "largest_recomputed": self.largest(each.gpu, True)}
                for each in self.estimates
            ],
            "here": list(map(_facts, self.here)),
            "offers": [
                dataclasses.asdict(each.offer)
                | {"hours": each.estimate.hours, "cost": each.cost}
                | {"kind": each.estimate.kind}
                for each in self.offered
            ],
            "recommendation": {
                "verdict": self.recommendation.verdict,
                "reason": self.recommendation.reason,
                "offer": self.recommendation.choice and dataclasses.asdict(self.recommendation.choice.offer),
            },
            "notes": self.notes,
        }


def make_plan(given: Mapping[str, Any], demands: Demands, num_images: int | None, prices: Path | None) -> Plan:
    """The plan of a training with these checked overrides.

    `num_images`: of training, with `--tile` of tiles, if the data is not here. `prices`: the user's price list.
    Raises UsageError or UserError.
    """
    offers, notes = all_offers(prices)
    config, num_classes, images, boxes = _training(given, num_images)
    if config.tile and num_images is not None:
        notes = [*notes, TILES_GIVEN]
    of_precision: tuple[Precision, ...] = ("float32", "amp")
    pairs = [(each, recomputed) for recomputed in (False, True) for each in of_precision]
    what: dict[str, Any] = {"boxes": boxes, "channels": images.channels}
    traces = dict(zip(pairs, trace_steps(config, num_classes, of_precision, (False, True), **what), strict=True))

    @functools.cache
    def on(gpu: str, count: int, cores: int) -> Estimate:
        cores = cores or CORES_OF_A_GPU * count
        return _estimated(traces, config, images, gpus()[gpu], count, demands.nodes, cores)

    estimates = [on(name, demands.count or 1, 0) for name in gpus()]
    here = []
    for gpu in own_devices():
        own = traces
        if is_cpu(gpu):
            precision, recomputed = _precision(config, gpu), config.checkpoint_activations
            found = trace_steps(config, num_classes, [precision], [recomputed], on_cpu=True, **what)
            own = {(precision, recomputed): found[0]}
        here.append(_estimated(own, config, images, gpu, 1, 1, usable_cores()))
    choices = ranked(offers, lambda offer: on(offer.gpu, offer.count, offer.cores))
    best = min((each for each in here if each.micro_batch), key=lambda each: each.hours, default=None)
    asked = [each for each in estimates if demands.gpu in (None, each.gpu.name)]
    advice = recommend(choices, demands, best, config.epochs, asked)
    kind = "counted" if num_images is None else "given"
    return Plan(config, images, kind, traces, estimates, here, choices, demands, advice, notes)


def _facts(each: Estimate) -> dict[str, Any]:
    figures = dataclasses.asdict(each)
    return figures | {"gpu": each.gpu.name, "memory": each.gpu.memory}


def _training(given: Mapping[str, Any], num_images: int | None) -> tuple[TrainConfig, int, Images, int]:
    """Settings as a run chooses them, number of classes, the data, and boxes that an image is padded to."""
    config = with_overrides(TrainConfig(), given)
    if num_images is None and not config.data:
        raise UsageError("say which data: --data FILE; or how many training images there will be: --images N")
    is_here = num_images is None or (config.data and Path(config.data).is_file())
    data = read_data_yaml(Path(config.data)) if is_here else None
    channels = data.pixels.channels if data else 3
    detector = build_model(config, CLASSES, channels)
    recipe = recipes.published(config.model, detector.head.criterion, config.preset)
    config = with_overrides(config, {**recipe, **given})
    if config.tile and "imgsz" not in given:
        config = dataclasses.replace(config, imgsz=rounded_up(config.tile, max(detector.strides)))
    if given.get("batch") == AUTO:  # the largest up to this
        config = dataclasses.replace(config, batch=config.optimization.nbs)
    if num_images is not None:
        classes = len(names_of(data.names, config.single_cls)) if data else CLASSES
        return config, classes, Images(num_images, round(VAL_SHARE * num_images), channels=channels), BOXES
    assert data is not None
    if config.classes is not None:
        chosen = ",".join(map(str, class_numbers(config.classes, data.names)))
        config = dataclasses.replace(config, classes=chosen)
    train, val = (tiled(index, tile_spec(config)) for index in load_splits_again(data, config))
    return config, len(train.names), Images.of(train, val, config), training_buckets(train, config)[-1]


def _estimated(
    traces: Mapping[tuple[Precision, bool], StepTrace],
    config: TrainConfig,
    images: Images,
    gpu: Gpu,
    count: int,
    nodes: int,
    cores: int,
) -> Estimate:
    """The job on `count` of these GPUs in each of `nodes` hosts, with the largest micro-batch that it can use."""
    precision = _precision(config, gpu)
    share = math.ceil(min(config.batch, images.train) / (count * nodes))
    known = correction(gpu, precision)
    kinds = [each for each in (False, True) if (precision, each) in traces and each >= config.checkpoint_activations]
    fitting = {each: _largest(traces[precision, each], gpu, precision) for each in kinds}
    recomputed = next((each for each in kinds if fitting[each]), kinds[-1])
    cost = traces[precision, recomputed].cost(min(fitting[recomputed], share) or 1)
    found = estimate(cost, config, images, gpu, count, nodes, cores, known)
    return found if fitting[recomputed] else dataclasses.replace(found, micro_batch=0)


def _largest(trace: StepTrace, gpu: Gpu, precision: Precision) -> int:
    """The most images whose step fits; a processor may take half of the memory that is free now."""
    if is_cpu(gpu):
        return trace.largest(gpu.memory / 2)
    known = correction(gpu, precision)
    usable = (gpu.memory - CONTEXT_BYTES) / FRAGMENTATION  # a run notes neither, so its correction leaves them
    return trace.largest(usable / known.memory if known else usable)


def _precision(config: TrainConfig, gpu: Gpu) -> Precision:
    return "amp" if config.amp and (not is_cpu(gpu) or "bfloat16" in gpu.flops) else "float32"
