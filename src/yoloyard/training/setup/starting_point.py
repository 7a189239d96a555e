"""The network of a run and the weights that it starts with: random ones, or those of a file as far as they fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yoloyard.common.errors import UsageError, UserError
from yoloyard.config.settings import TrainConfig
from yoloyard.models import registry
from yoloyard.models.custom_model import CustomModel, beside, is_custom, read_custom
from yoloyard.models.detector import Detector
from yoloyard.models.weights import WEIGHT_FILES, read_weights, transfer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The weights file that a run starts from."""

    path: Path
    state: dict[str, Tensor]
    metadata: dict[str, Any]


def starting_point(given: Mapping[str, Any]) -> tuple[Source | None, str, CustomModel | None]:
    """The weights file to start from, if any, the model, and the user's file, if the model is in one.

    `--model` takes a name, a file with a function, or a weights file; `--weights` alone brings its model with it.
    Raises UsageError or UserError where one of them can't be read.
    """
    model = registry.plain_name(given["model"]) if given.get("model") else None
    path = given.get("weights")
    if path is None and model is not None and Path(model).suffix.lower() in WEIGHT_FILES:
        path, model = model, None
    source = None if path is None else Source(Path(path), *read_weights(Path(path)))
    custom = None
    if source is not None and model is None:
        if "model" not in source.metadata:
            raise UserError(f"{path} does not say which model it holds; add --model NAME")
        model = source.metadata["model"]
        custom = beside(source.path, source.metadata) if is_custom(model) else None
    elif model is not None and is_custom(model):
        custom = read_custom(model)
    if custom is not None:
        model = f"{custom.path}:{custom.function}"
    return source, model or TrainConfig().model, custom


def model_arguments(source: Source | None, model: str, num_classes: int) -> dict[str, Any]:
    """What the network is built with: the class count, and the rest as in `source` if that is of the same model."""
    saved = source.metadata if source else {}
    same = saved.get("model_arguments", {}) if saved.get("model") == model else {}
    return {"num_classes": num_classes} | {
        name: value for name, value in same.items() if name not in ("num_classes", "channels")
    }


def build_detector(model: str, custom: CustomModel | None, arguments: Mapping[str, Any]) -> Detector:
    """The network with random weights, on the CPU: of the user's file `custom` or, without one, of the registry."""
    return custom.build(**arguments) if custom else registry.build(model, **arguments)


def transfer_weights(
    detector: Detector, source: Source, names: tuple[str, ...], model: str, custom: CustomModel | None
) -> str | None:
    """Put what fits of `source` into `detector`; returns the licence that comes with it. Raises UsageError if nothing
    fits.
    """
    state = source.state
    if custom is not None and source.metadata.get("model") != custom.word:
        state = {name: value for name, value in state.items() if name != "head.anchors"}  # the user gives his own
    report = transfer(detector, state, names, source.metadata.get("names", ()))
    if not report.taken:
        raise UsageError(f"nothing in {source.path} fits {model}: use --model to name the model that it was made for")
    log.info(f"weights from {source.path}: {report}")
    if source.metadata.get("fused"):
        log.info("that file was fused for inference: its normalisation begins again; the unfused file is better")
    licence: str | None = source.metadata.get("licence")
    if licence:
        log.info(f"these weights are under {licence}; that is kept in the files of this run")
    return licence


def freeze(detector: Detector, what: str | None) -> None:
    """Stop the training of the first N published blocks, or of parameters by prefixes of their names.

    Raises UsageError if there are no such blocks or parameters.
    """
    if what is not None and what.isdigit():
        blocks = detector.blocks
        if int(what) > len(blocks):
            raise UsageError(f"--freeze {what}: the model has only {len(blocks)} blocks")
        for block in filter(None, blocks[: int(what)]):
            block.requires_grad_(False)
        return
    names = dict(detector.named_parameters())
    for prefix in filter(None, (part.strip() for part in (what or "").split(","))):
        chosen = [parameter for name, parameter in names.items() if name.startswith(prefix)]
        if not chosen:
            tops = sorted({name.split(".")[0] for name in names})
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
