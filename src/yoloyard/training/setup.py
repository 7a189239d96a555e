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
from yoloyard.data.data_yaml import read_data_yaml
from yoloyard.data.index import Index, load_index
from yoloyard.data.problems import summary
from yoloyard.device import Precision, choose_device, choose_precision
from yoloyard.errors import UsageError, UserError
from yoloyard.files import new_run_folder, write_whole, write_whole_text
from yoloyard.models import own_model, registry
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorBasedHead
from yoloyard.models.own_model import OwnModel
from yoloyard.models.weights import WEIGHT_FILES, read_weights, transfer
from yoloyard.training.anchors import fit_anchors

FIGURES = ("map50_95", "map50", "map75", "map_small", "map_medium", "map_large", "precision", "recall", "f1")
MAY_CHANGE_ON_RESUME = ("epochs", "device", "workers", "patience", "save_period", "keep", "tensorboard")


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


@dataclass(frozen=True)
class Source:
    """The weight file that a run starts from."""

    path: Path
    state: dict[str, Tensor]
    metadata: dict[str, Any]


def prepare(words: Mapping[str, Any], say: Callable[[str], None]) -> Setup:
    """A new run from the user's words. Raises UsageError or UserError with what to do."""
    config = with_words(TrainConfig(), words)
    given = {word: to_words(config)[word] for word in normal_words(TrainConfig, words)}
    if not config.data:
        raise UsageError("say which data: --data FILE, a data.yaml with train, val and names")
    if config.best_by not in FIGURES:
        raise UsageError(unknown_word(config.best_by, FIGURES, "figure for --best-by"))
    if config.cache not in (None, "ram"):
        raise UsageError(f"--cache {config.cache}: the only cache is ram")
    device = choose_device(config.device)
    source, model, own = _starting_point(given)
    spec = read_data_yaml(Path(config.data))
    torch.manual_seed(config.seed)
    arguments = {"num_classes": len(spec.names)} | ({} if own else _own_arguments(source, model))
    detector = own.build(**arguments) if own else registry.build(model, **arguments)

    anchor_based = isinstance(detector.head, AnchorBasedHead)
    recipe = {word: value for word, value in recipes.published(model, anchor_based).items() if word not in given}
    start = {"weights": str(source.path.resolve())} if source else {}
    config = with_words(config, recipe | {"model": model, "data": str(spec.path)} | start)
    train_index, val_index = load_index(spec, "train"), load_index(spec, "val")
    _report_problems(train_index, "train", say)
    _report_problems(val_index, "val", say)
    config = _fit(config, given, detector, train_index, device, say)
    licence = _transfer(detector, source, spec.names, model, own, say) if source else None
    if isinstance(detector.head, AnchorBasedHead) and config.loss.autoanchor:
        fit_anchors(detector.head, train_index, config.imgsz, config.loss.anchor_t, config.seed, say)
    freeze(detector, config.freeze)
    folder = new_run_folder(Path(config.project), run_name(config), config.exist_ok)
    _write_config(folder, config)
    if own is not None:
        content = own.source
        write_whole(folder / own.path.name, lambda temporary: temporary.write_bytes(content))
    precision = choose_precision(device, config.amp)
    return Setup(config, folder, train_index, val_index, device, precision, detector, arguments, own, licence, given)


def prepare_resume(
    folder: Path, facts: Mapping[str, Any], words: Mapping[str, Any], say: Callable[[str], None]
) -> Setup:
    """The run of `folder` as its checkpoint's `facts` say, with the few words that may change.

    A recipe that was chosen for the run stays. Raises UsageError for a word that would make it another run.
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
    config = with_words(saved, {word: given[word] for word in MAY_CHANGE_ON_RESUME if word in given})
    if facts["progress"]["epoch"] >= config.epochs and (folder / "report.html").exists():
        raise UsageError(
            f"{folder} is finished after {facts['progress']['epoch']} epochs; extend it with "
            f"--resume {folder} --epochs N"
        )
    device = choose_device(config.device)
    spec = read_data_yaml(Path(config.data))
    train_index, val_index = load_index(spec, "train"), load_index(spec, "val")
    arguments = facts["model_arguments"]
    own = None
    if own_model.is_own(config.model):
        own = own_model.read_kept(config.model, facts.get("model_digest"), [folder])
    detector = own.build(**arguments) if own else registry.build(config.model, **arguments)
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
        facts["given"] | given,
    )
    if (setup.fingerprint(), list(spec.names)) != (facts["images"], facts["names"]):
        raise UserError(
            f"the training images or the classes of {spec.path} have changed since the run began; start a new one"
        )
    _write_config(folder, config)
    return setup


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
    say: Callable[[str], None],
) -> TrainConfig:
    """Derive what follows from the data, the network and the machine, and say what was derived."""
    stride = max(detector.strides)
    imgsz = math.ceil(config.imgsz / stride) * stride
    if imgsz != config.imgsz:
        say(f"imgsz {config.imgsz} is not a multiple of the stride {stride}: {imgsz} is used")
    batch = min(config.batch, len(train_index))
    if batch != config.batch:
        say(f"batch {config.batch} is more than the {len(train_index)} training images: {batch} is used")
    workers = config.workers
    if "workers" not in given:
        # On a CPU the arithmetic wants all cores; processes beside it would only take them away.
        # Powers of two keep each worker to the pictures that it has decoded itself.
        workers = 0 if device.type == "cpu" else 2 ** int(math.log2(min(workers, os.cpu_count() or 1)))
    config = with_words(config, {"imgsz": imgsz, "batch": batch, "workers": workers})
    config, line = recipes.fit_to_run(config, given, len(train_index), detector.num_classes)
    say(line)
    return config


def _report_problems(index: Index, split: str, say: Callable[[str], None]) -> None:
    if not index.problems:
        return
    say(f"{split}: {len(index.problems)} problems; what they name as skipped or left out is not used:")
    for line in summary(index.problems):
        say(f"  {line}")


def _write_config(folder: Path, config: TrainConfig) -> None:
    text = yaml.safe_dump(to_words(config), sort_keys=False, allow_unicode=True)
    write_whole_text(folder / "config.yaml", text)
