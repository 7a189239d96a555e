"""From what the user said to what will be done: the resolved configuration, the data, the network, the run folder."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from yoloyard.common.cores import usable_cores
from yoloyard.common.device import Precision, choose_precision
from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.files import RunLock, new_run_folder, write_whole, write_whole_text
from yoloyard.common.user_file import UserFile
from yoloyard.config import recipes
from yoloyard.config.settings import TrainConfig, flat_settings, normal_overrides, unknown_name, with_overrides
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import Index
from yoloyard.data.index.selection import class_numbers, names_of
from yoloyard.data.loading.epoch_plan import plan_epochs
from yoloyard.data.pixels.transform import Transform, restore
from yoloyard.models import custom_model as custom_model
from yoloyard.models import registry
from yoloyard.models.custom_model import CustomModel
from yoloyard.models.detector import Detector
from yoloyard.training.listeners.trackers import check_trackers
from yoloyard.training.setup import class_weights
from yoloyard.training.setup.anchors import fit_anchors
from yoloyard.training.setup.dataset import load_splits, load_splits_again
from yoloyard.training.setup.starting_point import custom_arguments, freeze, starting_point, transfer_weights
from yoloyard.training.state.randomness import seed_all

log = logging.getLogger(__name__)

FIGURES = ("map50_95", "map50", "map75", "map_small", "map_medium", "map_large", "precision", "recall", "f1")
MAY_CHANGE_ON_RESUME = (
    "epochs", "time", "device", "processes", "workers", "patience", "save_period", "keep", "tensorboard",
    "wandb", "compile", "hang_timeout",
)  # fmt: skip


@dataclass
class Setup:
    """A run that is ready to begin."""

    config: TrainConfig  # resolved: what was derived stands in it
    folder: Path
    train_index: Index
    val_index: Index
    device: torch.device
    precision: Precision
    detector: Detector  # on the CPU
    model_arguments: dict[str, Any]  # with the model's name they build the detector again
    custom_model: CustomModel | None  # where the network is the user's own
    licence: str | None  # of the weights that training started from
    given: dict[str, Any]  # the user's own words
    transform: Transform | None = None  # the user's own

    @property
    def model_name(self) -> str:
        """How weight files name the model."""
        return self.custom_model.word if self.custom_model else self.config.model

    @property
    def names(self) -> tuple[str, ...]:
        """The class names."""
        return self.train_index.names

    def fingerprint(self) -> str:
        """Changes with the training images, whose order decides which one comes when."""
        return self.train_index.names_digest()

    def facts(self) -> dict[str, Any]:
        """What `rebuild` makes this setup from, and a checkpoint keeps for a resumed run."""
        return {
            "config": flat_settings(self.config),
            "given": self.given,
            "images": self.fingerprint(),
            "names": list(self.names),
            "model_arguments": self.model_arguments,
            "model_digest": self.custom_model.digest if self.custom_model else None,
            "transform": self.transform.facts if self.transform else None,
            "licence": self.licence,
        }


def prepare(
    words: Mapping[str, Any],
    device: torch.device,
    num_processes: int,
    transform: Callable[..., Any] | None = None,
    lock: RunLock | None = None,
) -> Setup:
    """A new run of `num_processes` from the user's words; `lock` takes its folder.

    Raises UsageError or UserError with what to do.
    """
    config = with_overrides(TrainConfig(), words)
    given = {word: flat_settings(config)[word] for word in normal_overrides(TrainConfig, words)}
    if not config.data:
        raise UsageError("say which data: --data FILE, a data.yaml with train, val and names")
    if config.best_by not in FIGURES:
        raise UsageError(unknown_name(config.best_by, FIGURES, "figure for --best-by"))
    if config.cache not in (None, "ram", "disk"):
        raise UsageError(f"--cache {config.cache}: there are ram and disk")
    if config.batch % num_processes:
        raise UsageError(f"--batch {config.batch} can't be shared evenly by {num_processes} processes")
    if config.sync_bn and device.type == "cpu":
        raise UsageError("--sync-bn is for GPUs; leave it out on a CPU")
    _refuse_conflicts(config, given)
    check_trackers(config)
    source, model, own = starting_point(given)
    named = given.get("model", model)
    if registry.plain_name(named) != named and os.path.isfile(named):
        log.info(f"the network is {model}; what the file {named} says of it is not read")
    own_transform = _transform(config, transform, own)
    spec = read_data_yaml(Path(config.data))
    names = names_of(spec.names, config.single_cls)
    seed_all(config.seed)
    arguments = {"num_classes": len(names)} | ({} if own else custom_arguments(source, model))
    detector = own.build(**arguments) if own else registry.build(model, **arguments)

    published = recipes.published(model, detector.head.criterion)
    recipe = {word: value for word, value in published.items() if word not in given}
    start = {"weights": str(source.path.resolve())} if source else {}
    if own_transform is not None and own_transform.file is not None:
        start["transform"] = f"{own_transform.file.path}:{own_transform.file.function}"
    config = with_overrides(config, recipe | {"model": model, "data": str(spec.path)} | start)
    if config.classes is not None:
        config = with_overrides(config, {"classes": class_numbers(config.classes, spec.names)})
    train_index, val_index = load_splits(spec, config)
    config = _fit(config, given, detector, train_index, device, num_processes)
    licence = transfer_weights(detector, source, names, model, own) if source else None
    if "anchors" in detector.head.constants and config.loss.autoanchor:
        fit_anchors(detector.head, train_index, config.imgsz, config.loss.anchor_t, config.seed)
    freeze(detector, config.freeze)
    folder = new_run_folder(Path(config.project), run_name(config), config.exist_ok)
    if lock is not None:
        lock.take(folder)
    if own is not None:
        content = own.source
        write_whole(folder / own.path.name, lambda temporary: temporary.write_bytes(content))
    if own_transform is not None:
        own_transform.keep(folder)
    precision = choose_precision(device, config.amp, config.device_path)
    setup = Setup(
        config,
        folder,
        train_index,
        val_index,
        device,
        precision,
        detector,
        arguments,
        own,
        licence,
        given,
        own_transform,
    )
    write_config(setup)
    return setup


def prepare_resume(
    folder: Path,
    facts: Mapping[str, Any],
    words: Mapping[str, Any],
    device: torch.device,
    num_processes: int,
    transform: Callable[..., Any] | None = None,
) -> Setup:
    """The run of `folder` as its checkpoint's `facts` say, with the few words that may change.

    A recipe that was chosen for the run stays, and so does its transform, unless one is handed in. Raises UsageError
    for a word that would make it another run.
    """
    saved = with_overrides(TrainConfig(), facts["config"])
    asked = flat_settings(with_overrides(saved, words))
    asked["data"] = os.path.abspath(asked["data"])
    given = {word: asked[word] for word in normal_overrides(TrainConfig, words)}
    # The words of the command that began the run may be said again; so may where it lies.
    same = {word for word, value in given.items() if value in (flat_settings(saved)[word], facts["given"].get(word))}
    forbidden = sorted(set(given) - same - set(MAY_CHANGE_ON_RESUME) - {"project", "name", "exist_ok"})
    if forbidden:
        raise UsageError(
            f"a resumed run can't change {', '.join(forbidden)} (it can change {', '.join(MAY_CHANGE_ON_RESUME)}); "
            "start a new run with --weights instead"
        )
    changes = {word: given[word] for word in MAY_CHANGE_ON_RESUME if word in given}
    config = with_overrides(saved, changes | {"processes": num_processes})
    if config.batch % num_processes:
        raise UsageError(f"the batch of {config.batch} can't be shared evenly by {num_processes} processes")
    done = facts["progress"]["epoch"]
    if "epochs" in given and config.epochs < done:
        raise UsageError(f"{folder} has had {done} epochs; --epochs {config.epochs} would be fewer")
    is_over = done >= config.epochs or (config.time is not None and config.time == saved.time)
    if is_over and (folder / "report.html").exists():
        raise UsageError(
            f"{folder} is finished after {done} epochs; extend it with --resume {folder} "
            + ("--time HOURS" if config.time else "--epochs N")
        )
    check_trackers(config)
    setup = rebuild(folder, {**facts, "given": facts["given"] | given}, config, device, transform)
    write_config(setup)
    if setup.transform is not None:
        setup.transform.keep(folder)
    return setup


def rebuild(
    folder: Path,
    facts: Mapping[str, Any],
    config: TrainConfig,
    device: torch.device,
    transform: Callable[..., Any] | None = None,
) -> Setup:
    """The setup that `Setup.facts` describes: for a run that goes on, and in the processes that join the first.

    Raises UserError if its data have changed.
    """
    spec = read_data_yaml(Path(config.data))
    train_index, val_index = load_splits_again(spec, config)
    arguments = facts["model_arguments"]
    own = None
    if custom_model.is_custom(config.model):
        own = custom_model.read_kept(config.model, facts.get("model_digest"), [folder])
    detector = own.build(**arguments) if own else registry.build(config.model, **arguments)
    own_transform = None
    if transform is not None:
        own_transform = Transform(transform)
    elif facts.get("transform") is not None:
        own_transform = restore(folder, facts["transform"])
    freeze(detector, config.freeze)
    precision = choose_precision(device, config.amp, config.device_path)
    setup = Setup(
        config,
        folder,
        train_index,
        val_index,
        device,
        precision,
        detector,
        arguments,
        own,
        facts["licence"],
        facts["given"],
        own_transform,
    )
    if (setup.fingerprint(), list(setup.names)) != (facts["images"], facts["names"]):
        raise UserError(
            f"the training images or the classes of {spec.path} have changed since the run began; start a new one"
        )
    return setup


def write_config(setup: Setup) -> None:
    """Write the resolved configuration into the run folder."""
    text = yaml.safe_dump(flat_settings(setup.config), sort_keys=False, allow_unicode=True)
    write_whole_text(setup.folder / "config.yaml", text)


def run_name(config: TrainConfig) -> str:
    """A run is named after its data file, or after the file's folder where it is called data.yaml."""
    data = Path(config.data)
    return config.name or (data.parent.name if data.stem == "data" and data.parent.name else data.stem)


def _transform(config: TrainConfig, function: Callable[..., Any] | None, own: CustomModel | None) -> Transform | None:
    """The transform that was handed in, or that the word `transform` names."""
    if function is not None and config.transform is not None:
        raise UsageError(
            f"there are two transforms, {function!r:.80} and --transform {config.transform}; leave one out"
        )
    if function is not None:
        return Transform(function)
    if config.transform is None:
        return None
    file = UserFile.read(config.transform, "transform", "transform: --transform my_transform.py:NAME")
    if own is not None and own.path.name == file.path.name and own.source != file.source:
        raise UsageError(f"{own.path} and {file.path} have the same name, and the run keeps a copy of both; rename one")
    return Transform(file)


def _fit(
    config: TrainConfig,
    given: Mapping[str, Any],
    detector: Detector,
    train_index: Index,
    device: torch.device,
    num_processes: int,
) -> TrainConfig:
    """Derive what follows from the data, the network and the machine, and say what was derived."""
    stride = max(detector.strides)
    imgsz = detector.input_size(config.imgsz)
    if imgsz != config.imgsz:
        log.info(f"imgsz {config.imgsz} is not a multiple of the stride {stride}: {imgsz} is used")
    batch = min(config.batch, len(train_index) // num_processes * num_processes)
    if not batch:
        raise UsageError(f"{len(train_index)} training images are too few for {num_processes} processes")
    if batch != config.batch:
        log.info(f"batch {config.batch} is more than the {len(train_index)} training images: {batch} is used")
    workers = config.workers
    if "workers" not in given:
        # On a CPU the arithmetic wants all cores; processes beside it would only take them away.
        # Powers of two keep each worker to the images that it has decoded itself.
        affordable = max(1, min(workers, usable_cores() // num_processes))
        workers = 0 if device.type == "cpu" else 2 ** int(math.log2(affordable))
    derived = {"imgsz": imgsz, "batch": batch, "workers": workers, "processes": num_processes}
    config = with_overrides(config, derived)
    if config.rect:
        log.info("rect: batches of similar shapes, without mosaic and mixup")
        config = with_overrides(config, {"mosaic": 0, "mixup": 0})
    if config.class_weights is not None:
        weights = class_weights.resolve(config.class_weights, train_index)
        config = with_overrides(config, {"class_weights": weights})
        log.info(f"class weights: {class_weights.as_line(weights, train_index.names)}")
    places = len(plan_epochs(train_index, config, stride))
    if config.repeat_factor:
        log.info(f"repeat factor {config.repeat_factor:g}: an epoch has {places} images instead of {len(train_index)}")
    config, line = recipes.fit_to_run(config, given, places, detector.num_classes)
    log.info(line)
    return config


def _refuse_conflicts(config: TrainConfig, given: Mapping[str, Any]) -> None:
    if config.rect:
        for word in ("mosaic", "mixup"):
            if given.get(word):
                raise UsageError(f"--rect has no {word}: leave out --rect or --{word}")
    if config.single_cls and config.class_weights is not None:
        raise UsageError("--single-cls leaves one class and --class-weights nothing to weigh: leave out one of them")
