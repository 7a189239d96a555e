"""What decides a run: its specification; what is refused, derived from data and host, or changed by a resume."""

import dataclasses
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yoloyard.common.cores import usable_cores
from yoloyard.common.device import choose_devices
from yoloyard.common.errors import UsageError
from yoloyard.common.image_size import say_rounded, shape_of, size_text
from yoloyard.config import recipes
from yoloyard.config.overrides import unknown_name, with_overrides
from yoloyard.config.settings import AUTO, TrainConfig, flat_settings, settings_of
from yoloyard.data.index.index import Index
from yoloyard.data.loading.epoch_plan import has_boxes, plan_epochs
from yoloyard.evaluation.metrics.coco import FIGURES
from yoloyard.models.detector import Detector
from yoloyard.storage.address import check_address
from yoloyard.training.distributed.meeting import host_counts
from yoloyard.training.listeners.trackers import check_trackers
from yoloyard.training.spec import RunSpec

log = logging.getLogger(__name__)

ON_DIVERGENCE = ("warn", "stop", "rollback")
STRATEGIES = ("ddp", "fsdp", "placement", "pipeline")
# Settings that a strategy can't follow; the shapes of a pipeline never change.
REFUSED = {
    "fsdp": ["sync_bn", "compress_gradients"],
    "placement": ["sync_bn", "compile", "compress_gradients"],
    "pipeline": ["sync_bn", "compile", "multi_scale", "rect", "compress_gradients"],
}
MAX_CLASSES_NAMED = 20  # in a line


def check_new(config: TrainConfig, given: Mapping[str, Any], device: torch.device, num_processes: int) -> None:
    """Raise UsageError where a new run can't be as `config` says, before anything is read."""
    if not config.data:
        raise UsageError("say which data: --data FILE, a data.yaml with train, val and names")
    if config.best_by not in FIGURES:
        raise UsageError(unknown_name(config.best_by, FIGURES, "figure for --best-by"))
    if config.cache not in (None, "ram", "disk"):
        raise UsageError(f"--cache {config.cache}: there are ram and disk")
    if given.get("batch", AUTO) != AUTO:
        check_shares(f"--batch {config.batch}", config.batch, config.nodes, num_processes)
    elif config.strategy in ("placement", "pipeline") and given.get("batch") == AUTO:
        raise UsageError(f"--batch auto measures one device; with --strategy {config.strategy} say a number")
    if config.strategy == "pipeline" and num_processes == 1:
        raise UsageError("--strategy pipeline has a process for each stage of the network: say how many by --processes")
    if config.sync_bn and device.type == "cpu":
        raise UsageError("--sync-bn is for GPUs; leave it out on a CPU")
    for name in ("mosaic", "mixup"):
        if config.rect and given.get(name):
            raise UsageError(f"--rect has no {name}: leave out --rect or --{name}")
    if config.tile and config.rect:
        raise UsageError("--rect has nothing to do where all tiles have one shape: leave out --rect or --tile")
    for name in ("tile_overlap", "tile_visible", "tile_positive"):
        if not config.tile and given.get(name, getattr(TrainConfig(), name)) != getattr(TrainConfig(), name):
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} says something of tiles: say --tile PIXELS too, or leave out --{flag}")
    if config.single_cls and config.class_weights is not None:
        raise UsageError("--single-cls leaves one class and --class-weights nothing to weigh: leave out one of them")
    check_resumable(config)
    if config.strategy == "placement":
        check_placement(config.device, num_processes)


def shares_of(nodes: str, processes: int) -> int:
    """Of what number a batch must be a multiple: of each number of processes that the run may come to have.

    `processes`: those of now; other hosts that may come have as many as this one.
    """
    least, most = host_counts(nodes)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return math.lcm(processes, *(hosts * here for hosts in range(least, most + 1) if least < most))


def check_shares(name: str, batch: int, nodes: str, processes: int) -> None:
    """Raise UsageError if some number of processes that the run may come to have can't share `batch` evenly."""
    shares = shares_of(nodes, processes)
    if batch % processes:
        raise UsageError(f"{name} can't be shared evenly by {processes} processes")
    if batch % shares:
        up = math.ceil(batch / shares) * shares
        raise UsageError(f"{name} can't be shared evenly by each number of hosts in --nodes {nodes}: say --batch {up}")


def check_resumable(config: TrainConfig) -> None:
    """Raise UsageError for settings that a resumed run may change, too, and that are names of things."""
    if config.on_divergence not in ON_DIVERGENCE:
        raise UsageError(unknown_name(config.on_divergence, ON_DIVERGENCE, "answer for --on-divergence"))
    if config.strategy not in STRATEGIES:
        raise UsageError(unknown_name(config.strategy, STRATEGIES, "strategy for --strategy"))
    for name in REFUSED.get(config.strategy, ()):
        if getattr(config, name):
            flag = name.replace("_", "-")
            raise UsageError(f"--strategy {config.strategy} does not go with --{flag}: leave one of them out")
    if config.cpu_offload and config.strategy != "fsdp":
        raise UsageError(f"--cpu-offload is for --strategy fsdp, not {config.strategy}: say --no-cpu-offload")
    check_trackers(config)
    if config.backup:
        check_address(config.backup, config.backup_endpoint)


def choose_path(detector: Detector, suppression: str | None) -> str:
    """The path by which epochs are judged: `suppression`, or without it the one for it where the network has that.

    Raises UsageError if the network can't go that path.
    """
    if suppression is None:
        return detector.head.paths[0]
    detector.head.check_path(suppression == "on")
    return suppression


def check_placement(device: str, num_processes: int) -> None:
    """Raise UsageError if `--strategy placement` can't be on these devices, or in so many processes."""
    if num_processes > 1:
        raise UsageError(f"--strategy placement is one process with several devices; here are {num_processes}")
    if len({each.type for each in choose_devices(device)}) > 1 or "," not in device:
        raise UsageError(f"--strategy placement wants two devices of a kind or more, such as 0,1, not {device}")


def derive(
    config: TrainConfig,
    given: Mapping[str, Any],
    detector: Detector,
    index: Index,
    device: torch.device,
    processes: int,
) -> TrainConfig:
    """The configuration with what follows from data, network and host, each said in a line. Raises UsageError."""
    stride = max(detector.strides)
    imgsz = detector.input_size(config.imgsz)
    say_rounded(config.imgsz, imgsz, stride)
    if config.tile and min(shape_of(config.tile)) < stride:
        raise UsageError(f"--tile {size_text(config.tile)} is less than the network's largest stride, {stride}")
    items = "tiles" if config.tile else "images"
    shares = shares_of(config.nodes, processes)
    # Of tiles an epoch may have few; a batch has none of them twice.
    most = len(index) if index.tiling is None else min(len(index), len(plan_epochs(index, config, stride)))
    batch = max(min(config.batch, most) // shares, 1) * shares
    if batch > most:
        raise UsageError(f"{most} training {items} are too few for {shares} processes")
    if config.batch > most:
        log.info(f"batch {config.batch} is more than the {most} training {items}: {batch} is used")
    elif batch != config.batch:
        whom = f"{processes} processes" if shares == processes else f"each number of hosts in --nodes {config.nodes}"
        log.info(f"batch {config.batch} can't be shared evenly by {whom}: {batch} is used")
    derived: dict[str, Any] = {"imgsz": imgsz, "batch": batch, "processes": processes}
    if "workers" not in given:
        # On a CPU the arithmetic wants all cores; processes beside it would only take them away.
        # Powers of two keep each worker to the images that it has decoded itself.
        here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
        affordable = max(1, min(config.workers, usable_cores() // here))
        derived["workers"] = 0 if device.type == "cpu" else 2 ** int(math.log2(affordable))
    if config.rect:
        log.info("rect: batches of similar shapes, without mosaic and mixup")
        derived |= {"mosaic": 0, "mixup": 0}
    if config.class_weights is not None:
        derived["class_weights"] = weights = resolve_class_weights(config.class_weights, index)
        log.info(f"class weights: {class_weights_line(weights, index.names)}")
    config = with_overrides(config, derived)
    places = len(plan_epochs(index, config, stride))
    if index.tiling is not None:
        log.info(tiles_line(index, config, places))
    elif config.repeat_factor:
        log.info(f"repeat factor {config.repeat_factor:g}: an epoch has {places} images instead of {len(index)}")
    config, line = recipes.fit_to_run(config, given, places, detector.num_classes)
    log.info(line)
    return config


def tiles_line(index: Index, config: TrainConfig, places: int) -> str:
    """What the tiles of `index` are, for the user; `places` of them an epoch."""
    assert index.tiling is not None
    spec, positive = index.tiling.spec, np.count_nonzero(has_boxes(index))
    parts = [f"{spec}: {len(index):,} of {len(index.whole):,} images, {positive:,} with boxes"]
    if places != len(index):
        parts.append(f"{places:,} of them an epoch")
    scale = spec.scaled_shape(*shape_of(spec.size), config.imgsz)[0] / shape_of(spec.size)[0]
    if not 0.9 < scale < 1.1:
        parts.append(f"scaled by {scale:.2f} to fit into imgsz {size_text(config.imgsz)}")
    if not spec.overlap:
        parts.append("without overlap, what lies on a seam is found in parts, and nothing can join them")
    return "; ".join(parts)


def resumed(spec: RunSpec, overrides: Mapping[str, Any], num_processes: int, folder: Path, epochs_done: int) -> RunSpec:
    """The specification of a run that goes on, with the few overrides that may change it. Raises UsageError."""
    saved = flat_settings(spec.config)
    given = {name: os.path.abspath(value) if name == "data" else value for name, value in overrides.items()}
    # What was said when the run began may be said again, and where its folder is.
    new = {name for name, value in given.items() if value not in (saved[name], spec.given.get(name))}
    resumable = [name for name, leaf in settings_of(TrainConfig).items() if leaf.resumable]
    forbidden = sorted(new - {*resumable, "data", "project", "name", "exist_ok"})
    if forbidden:
        raise UsageError(
            f"a resumed run can't change {', '.join(forbidden)} (it can change {', '.join(resumable)}); "
            "start a new run with --weights instead"
        )
    changes = {"nodes": "1", "rendezvous": None}  # of this start alone
    changes |= {name: given[name] for name in (*resumable, "data") if name in given}
    config = with_overrides(spec.config, changes | {"processes": num_processes})
    check_shares(f"the batch of {config.batch}", config.batch, config.nodes, num_processes)
    if "epochs" in given and config.epochs < epochs_done:
        raise UsageError(f"{folder} has had {epochs_done} epochs; --epochs {config.epochs} would be fewer")
    is_over = epochs_done >= config.epochs or (config.time is not None and config.time == spec.config.time)
    if is_over and (folder / "report.html").exists():
        raise UsageError(
            f"{folder} is finished after {epochs_done} epochs; extend it with --resume {folder} "
            + ("--time HOURS" if config.time else "--epochs N")
        )
    check_resumable(config)
    if config.strategy == "placement":
        check_placement(config.device, num_processes)
    return dataclasses.replace(spec, config=config, given=spec.given | given)


def resolve_class_weights(text: str, index: Index) -> str:
    """The weights as numbers joined by commas; `balanced` ones follow from the training boxes. Raises UsageError."""
    if text.strip() == "balanced":
        labels = np.array(index.labels)[~np.array(index.ignore)]
        weights = balanced_class_weights(np.bincount(labels, minlength=len(index.names)))
        text = ",".join(f"{weight:.6g}" for weight in weights)
    parse_class_weights(text, len(index.names))
    return text


def parse_class_weights(text: str, num_classes: int) -> tuple[float, ...]:
    """The numbers of a list joined by commas. Raises UsageError if they are not one for each class, or all 0."""
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--class-weights {text}: say 'balanced' or numbers such as 1,2,0.5 ({error})") from error
    if len(weights) != num_classes:
        raise UsageError(f"--class-weights has {len(weights)} numbers, but there are {num_classes} classes")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise UsageError(f"--class-weights {text}: no weight can be below 0 or infinite, and one must be above 0")
    return weights


def class_weights_line(text: str, names: Sequence[str]) -> str:
    """The weights for a reader, the first ones of many."""
    parts = [f"{name} {weight:.3g}" for name, weight in zip(names, parse_class_weights(text, len(names)), strict=True)]
    more = len(parts) - MAX_CLASSES_NAMED
    return ", ".join(parts[:MAX_CLASSES_NAMED]) + (f" and {more} more, see config.yaml" if more > 0 else "")


def balanced_class_weights(boxes: np.ndarray) -> np.ndarray:
    """Weights (C,) for classes with `boxes` (C,): the inverse root, mean 1 over all boxes; 1 for a class without."""
    weights = 1 / np.sqrt(np.maximum(boxes, 1))
    weights *= boxes.sum() / max((boxes * weights).sum(), 1e-12)
    return np.where(boxes > 0, weights, 1.0)
