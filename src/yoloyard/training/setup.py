"""From what the user said to what will be done: the resolved configuration, the data, the network, the run folder."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from yoloyard import recipes
from yoloyard.config import TrainConfig, normal_words, to_words, unknown_word, with_words
from yoloyard.data.data_yaml import DataSpec, read_data_yaml
from yoloyard.data.epoch_plan import plan_epochs
from yoloyard.data.index import Index, load_index
from yoloyard.data.selection import class_numbers, names_of, select
from yoloyard.data.transform import Transform, restore
from yoloyard.device import Precision, choose_precision
from yoloyard.errors import UsageError, UserError
from yoloyard.files import new_run_folder, write_whole, write_whole_text
from yoloyard.models import own_model, registry
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorBasedHead
from yoloyard.models.own_model import OwnModel
from yoloyard.models.weights import WEIGHT_FILES, read_weights, transfer
from yoloyard.own_file import OwnFile
from yoloyard.training import class_weights
from yoloyard.training.anchors import fit_anchors
from yoloyard.training.trackers import check_trackers

FIGURES = ("map50_95", "map50", "map75", "map_small", "map_medium", "map_large", "precision", "recall", "f1")
MAY_CHANGE_ON_RESUME = (
    "epochs", "time", "device", "processes", "workers", "patience", "save_period", "keep", "tensorboard",
    "wandb",
)  # fmt: skip
PROBLEMS_SHOWN = 5


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
    own_model: OwnModel | None  # where the network is the user's own
    licence: str | None  # of the weights that training started from
    given: dict[str, Any]  # the user's own words
    transform: Transform | None = None  # the user's own

    @property
    def model_name(self) -> str:
        """How weight files name the model."""
        return self.own_model.word if self.own_model else self.config.model

    @property
    def names(self) -> tuple[str, ...]:
        """The class names."""
        return self.train_index.names

    def fingerprint(self) -> str:
        """Changes with the training images, whose order decides which one comes when."""
        names = "\n".join(path.name for path in self.train_index.paths)
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()

    def facts(self) -> dict[str, Any]:
        """What `rebuild` makes this setup from, and a checkpoint keeps for a resumed run."""
        return {
            "config": to_words(self.config),
            "given": self.given,
            "images": self.fingerprint(),
            "names": list(self.names),
            "model_arguments": self.model_arguments,
            "model_digest": self.own_model.digest if self.own_model else None,
            "transform": self.transform.facts if self.transform else None,
            "licence": self.licence,
        }


@dataclass(frozen=True)
class Source:
    """The weight file that a run starts from."""

    path: Path
    state: dict[str, Tensor]
    metadata: dict[str, Any]


def prepare(
    words: Mapping[str, Any],
    device: torch.device,
    num_processes: int,
    say: Callable[[str], None],
    transform: Callable[..., Any] | None = None,
) -> Setup:
    """A new run of `num_processes` from the user's words. Raises UsageError or UserError with what to do."""
    config = with_words(TrainConfig(), words)
    given = {word: to_words(config)[word] for word in normal_words(TrainConfig, words)}
    if not config.data:
        raise UsageError("say which data: --data FILE, a data.yaml with train, val and names")
    if config.best_by not in FIGURES:
        raise UsageError(unknown_word(config.best_by, FIGURES, "figure for --best-by"))
    if config.cache not in (None, "ram"):
        raise UsageError(f"--cache {config.cache}: the only cache is ram")
    if config.batch % num_processes:
        raise UsageError(f"--batch {config.batch} can't be shared evenly by {num_processes} processes")
    if config.sync_bn and device.type == "cpu":
        raise UsageError("--sync-bn is for GPUs; leave it out on a CPU")
    _refuse_conflicts(config, given)
    check_trackers(config)
    source, model, own = _starting_point(given)
    own_transform = _transform(config, transform, own)
    spec = read_data_yaml(Path(config.data))
    names = names_of(spec.names, config.single_cls)
    torch.manual_seed(config.seed)
    arguments = {"num_classes": len(names)} | ({} if own else _own_arguments(source, model))
    detector = own.build(**arguments) if own else registry.build(model, **arguments)

    anchor_based = isinstance(detector.head, AnchorBasedHead)
    recipe = {word: value for word, value in recipes.published(model, anchor_based).items() if word not in given}
    start = {"weights": str(source.path.resolve())} if source else {}
    if own_transform is not None and own_transform.file is not None:
        start["transform"] = f"{own_transform.file.path}:{own_transform.file.function}"
    config = with_words(config, recipe | {"model": model, "data": str(spec.path)} | start)
    if config.classes is not None:
        config = with_words(config, {"classes": class_numbers(config.classes, spec.names)})
    train_index, val_index = _load(spec, config)
    _report_problems(train_index, "train", say)
    _report_problems(val_index, "val", say)
    _report_selection(config, spec, train_index, val_index, say)
    config = _fit(config, given, detector, train_index, device, num_processes, say)
    licence = _transfer(detector, source, names, model, own, say) if source else None
    if isinstance(detector.head, AnchorBasedHead) and config.loss.autoanchor:
        fit_anchors(detector.head, train_index, config.imgsz, config.loss.anchor_t, config.seed, say)
    freeze(detector, config.freeze)
    folder = new_run_folder(Path(config.project), run_name(config), config.exist_ok)
    if own is not None:
        content = own.source
        write_whole(folder / own.path.name, lambda temporary: temporary.write_bytes(content))
    if own_transform is not None:
        own_transform.keep(folder)
    precision = choose_precision(device, config.amp)
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
    saved = with_words(TrainConfig(), facts["config"])
    asked = to_words(with_words(saved, words))
    asked["data"] = os.path.abspath(asked["data"])
    given = {word: asked[word] for word in normal_words(TrainConfig, words)}
    # The words of the command that began the run may be said again; so may where it lies.
    same = {word for word, value in given.items() if value in (to_words(saved)[word], facts["given"].get(word))}
    forbidden = sorted(set(given) - same - set(MAY_CHANGE_ON_RESUME) - {"project", "name", "exist_ok"})
    if forbidden:
        raise UsageError(
            f"a resumed run can't change {', '.join(forbidden)} (it can change {', '.join(MAY_CHANGE_ON_RESUME)}); "
            "start a new run with --weights instead"
        )
    changes = {word: given[word] for word in MAY_CHANGE_ON_RESUME if word in given}
    config = with_words(saved, changes | {"processes": num_processes})
    if config.batch % num_processes:
        raise UsageError(f"the batch of {config.batch} can't be shared evenly by {num_processes} processes")
    is_over = facts["progress"]["epoch"] >= config.epochs or (config.time is not None and config.time == saved.time)
    if is_over and (folder / "report.html").exists():
        raise UsageError(
            f"{folder} is finished after {facts['progress']['epoch']} epochs; extend it with --resume {folder} "
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
    train_index, val_index = _load(spec, config)
    arguments = facts["model_arguments"]
    own = None
    if own_model.is_own(config.model):
        own = own_model.read_kept(config.model, facts.get("model_digest"), [folder])
    detector = own.build(**arguments) if own else registry.build(config.model, **arguments)
    own_transform = None
    if transform is not None:
        own_transform = Transform(transform)
    elif facts.get("transform") is not None:
        own_transform = restore(folder, facts["transform"])
    freeze(detector, config.freeze)
    precision = choose_precision(device, config.amp)
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
    text = yaml.safe_dump(to_words(setup.config), sort_keys=False, allow_unicode=True)
    write_whole_text(setup.folder / "config.yaml", text)


def freeze(detector: Detector, what: str | None) -> None:
    """Stop the training of the first N published blocks, or of parameters by prefix; they stay in evaluation mode."""
    if what is None:
        return
    if what.isdigit():
        blocks = detector.blocks
        if int(what) > len(blocks):
            raise UsageError(f"--freeze {what}: the model has only {len(blocks)} blocks")
        for block in blocks[: int(what)]:
            if block is not None:
                block.requires_grad_(False)
        return
    for prefix in filter(None, (part.strip() for part in what.split(","))):
        chosen = [parameter for name, parameter in detector.named_parameters() if name.startswith(prefix)]
        if not chosen:
            tops = sorted({name.split(".")[0] for name, _ in detector.named_parameters()})
            raise UsageError(f"--freeze {prefix}: no parameter begins so; names begin with {', '.join(tops)}")
        for parameter in chosen:
            parameter.requires_grad_(False)


def set_training_mode(detector: torch.nn.Module) -> None:
    """Training mode, but for normalisation layers whose parameters are frozen."""
    detector.train()
    for module in detector.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and not any(
            parameter.requires_grad for parameter in module.parameters()
        ):
            module.eval()


def run_name(config: TrainConfig) -> str:
    """A run is named after its data file, or after the file's folder where it is called data.yaml."""
    data = Path(config.data)
    return config.name or (data.parent.name if data.stem == "data" and data.parent.name else data.stem)


def _starting_point(given: Mapping[str, Any]) -> tuple[Source | None, str, OwnModel | None]:
    """The weight file to start from, if any, the model, and the user's file, if the model is in one.

    `--model` takes a name, a file with a function, or a weight file; `--weights` alone brings its model with it.
    """
    model = given.get("model")
    path = given.get("weights")
    if path is None and model is not None and Path(model).suffix in WEIGHT_FILES:
        path, model = model, None
    source = None if path is None else Source(Path(path), *read_weights(Path(path)))
    own = None
    if model is None and source is not None:
        if "model" not in source.metadata:
            raise UserError(f"{path} does not say which model it holds; add --model NAME")
        model = source.metadata["model"]
        own = own_model.beside(source.path, source.metadata) if own_model.is_own(model) else None
    elif model is not None and own_model.is_own(model):
        own = own_model.read_own(model)
    if own is not None:
        model = f"{own.path}:{own.function}"
    return source, model or TrainConfig().model, own


def _transform(config: TrainConfig, function: Callable[..., Any] | None, own: OwnModel | None) -> Transform | None:
    """The transform that was handed in, or that the word `transform` names."""
    if function is not None and config.transform is not None:
        raise UsageError(
            f"there are two transforms, {function!r:.80} and --transform {config.transform}; leave one out"
        )
    if function is not None:
        return Transform(function)
    if config.transform is None:
        return None
    file = OwnFile.read(config.transform, "transform", "transform: --transform my_transform.py:NAME")
    if own is not None and own.path.name == file.path.name and own.source != file.source:
        raise UsageError(f"{own.path} and {file.path} have the same name, and the run keeps a copy of both; rename one")
    return Transform(file)


def _own_arguments(source: Source | None, model: str) -> dict[str, Any]:
    """What the source's file says of its network beyond the class count, if it is of the same model."""
    if source is None or source.metadata.get("model") != model:
        return {}
    arguments = source.metadata.get("model_arguments", {})
    return {word: value for word, value in arguments.items() if word not in ("num_classes", "channels")}


def _transfer(
    detector: Detector,
    source: Source,
    names: tuple[str, ...],
    model: str,
    own: OwnModel | None,
    say: Callable[[str], None],
) -> str | None:
    """Put what fits of `source` into `detector` and say so; returns the licence that comes with it."""
    state = source.state
    if own is not None and source.metadata.get("model") != own.word:
        state = {name: value for name, value in state.items() if name != "head.anchors"}  # the user gives his own
    report = transfer(detector, state, names, source.metadata.get("names", ()))
    if not report.taken:
        raise UsageError(f"nothing in {source.path} fits {model}: use --model to name the model that it was made for")
    say(f"weights from {source.path}: {report}")
    if source.metadata.get("fused"):
        say("that file was fused for inference: its normalisation is gone and begins anew; the unfused file is better")
    licence: str | None = source.metadata.get("licence")
    if licence:
        say(f"these weights are under {licence}; that is kept in the files of this run")
    return licence


def _fit(
    config: TrainConfig,
    given: Mapping[str, Any],
    detector: Detector,
    train_index: Index,
    device: torch.device,
    num_processes: int,
    say: Callable[[str], None],
) -> TrainConfig:
    """Derive what follows from the data, the network and the machine, and say what was derived."""
    stride = max(detector.strides)
    imgsz = math.ceil(config.imgsz / stride) * stride
    if imgsz != config.imgsz:
        say(f"imgsz {config.imgsz} is not a multiple of the stride {stride}: {imgsz} is used")
    batch = min(config.batch, len(train_index) // num_processes * num_processes)
    if not batch:
        raise UsageError(f"{len(train_index)} training images are too few for {num_processes} processes")
    if batch != config.batch:
        say(f"batch {config.batch} is more than the {len(train_index)} training images: {batch} is used")
    workers = config.workers
    if "workers" not in given:
        # On a CPU the arithmetic wants all cores; processes beside it would only take them away.
        # Powers of two keep each worker to the pictures that it has decoded itself.
        affordable = max(1, min(workers, (os.cpu_count() or 1) // num_processes))
        workers = 0 if device.type == "cpu" else 2 ** int(math.log2(affordable))
    derived = {"imgsz": imgsz, "batch": batch, "workers": workers, "processes": num_processes}
    config = with_words(config, derived)
    if config.rect:
        say("rect: batches of similar shapes, without mosaic and mixup")
        config = with_words(config, {"mosaic": 0, "mixup": 0})
    if config.class_weights is not None:
        weights = class_weights.resolve(config.class_weights, train_index)
        config = with_words(config, {"class_weights": weights})
        say(f"class weights: {class_weights.as_line(weights, train_index.names)}")
    places = len(plan_epochs(train_index, config, stride))
    if config.repeat_factor:
        say(f"repeat factor {config.repeat_factor:g}: an epoch has {places} images instead of {len(train_index)}")
    config, line = recipes.fit_to_run(config, given, places, detector.num_classes)
    say(line)
    return config


def _refuse_conflicts(config: TrainConfig, given: Mapping[str, Any]) -> None:
    if config.rect:
        for word in ("mosaic", "mixup"):
            if given.get(word):
                raise UsageError(f"--rect has no {word}: leave out --rect or --{word}")
    if config.single_cls and config.class_weights is not None:
        raise UsageError("--single-cls leaves one class and --class-weights nothing to weigh: leave out one of them")


def _load(spec: DataSpec, config: TrainConfig) -> tuple[Index, Index]:
    """What is trained on and what validation counts."""
    train_index, val_index = load_index(spec, "train"), load_index(spec, "val")
    return (
        select(train_index, config.classes, config.single_cls, config.fraction, config.seed),
        select(val_index, config.classes, config.single_cls),
    )


def _report_selection(
    config: TrainConfig, spec: DataSpec, train_index: Index, val_index: Index, say: Callable[[str], None]
) -> None:
    if config.classes is not None:
        chosen = ", ".join(spec.names[number] for number in class_numbers(config.classes, spec.names))
        say(
            f"classes {chosen} alone: {len(train_index.boxes)} boxes for training, {len(val_index.boxes)} for "
            "validation; images without them stay as background"
        )
    if config.single_cls:
        say(f"all classes are one: {train_index.names[0]}")
    if config.fraction < 1:
        say(f"fraction {config.fraction:g}: {len(train_index)} training images are used")


def _report_problems(index: Index, split: str, say: Callable[[str], None]) -> None:
    if not index.problems:
        return
    say(f"{split}: {len(index.problems)} problems; what they name is left out:")
    for problem in index.problems[:PROBLEMS_SHOWN]:
        say(f"  {problem}")
    if len(index.problems) > PROBLEMS_SHOWN:
        say(f"  ... and {len(index.problems) - PROBLEMS_SHOWN} more; the report lists them")
