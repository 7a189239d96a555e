"""What the weights of a run begin with: a file's, as far as they fit, and which of them stay frozen."""

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
from yoloyard.models import custom_model as custom_model
from yoloyard.models import registry
from yoloyard.models.custom_model import CustomModel
from yoloyard.models.detector import Detector
from yoloyard.models.weights import WEIGHT_FILES, read_weights, transfer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The weight file that a run starts from."""

    path: Path
    state: dict[str, Tensor]
    metadata: dict[str, Any]


def starting_point(given: Mapping[str, Any]) -> tuple[Source | None, str, CustomModel | None]:
    """The weight file to start from, if any, the model, and the user's file, if the model is in one.

    `--model` takes a name, a file with a function, or a weight file; `--weights` alone brings its model with it.
    """
    model = registry.plain_name(given["model"]) if given.get("model") else None
    path = given.get("weights")
    if path is None and model is not None and Path(model).suffix.lower() in WEIGHT_FILES:
        path, model = model, None
    source = None if path is None else Source(Path(path), *read_weights(Path(path)))
    own = None
    if model is None and source is not None:
        if "model" not in source.metadata:
            raise UserError(f"{path} does not say which model it holds; add --model NAME")
        model = source.metadata["model"]
        own = custom_model.beside(source.path, source.metadata) if custom_model.is_custom(model) else None
    elif model is not None and custom_model.is_custom(model):
        own = custom_model.read_custom(model)
    if own is not None:
        model = f"{own.path}:{own.function}"
    return source, model or TrainConfig().model, own


def custom_arguments(source: Source | None, model: str) -> dict[str, Any]:
    """What the source's file says of its network beyond the class count, if it is of the same model."""
    if source is None or source.metadata.get("model") != model:
        return {}
    arguments = source.metadata.get("model_arguments", {})
    return {word: value for word, value in arguments.items() if word not in ("num_classes", "channels")}


def transfer_weights(
    detector: Detector,
    source: Source,
    names: tuple[str, ...],
    model: str,
    own: CustomModel | None,
) -> str | None:
    """Put what fits of `source` into `detector` and say so; returns the licence that comes with it."""
    state = source.state
    if own is not None and source.metadata.get("model") != own.word:
        chosen = [f"head.{name}" for name in detector.head.constants]  # by the user's file
        state = {name: value for name, value in state.items() if name not in chosen}
    report = transfer(detector, state, names, source.metadata.get("names", ()))
    if not report.taken:
        raise UsageError(f"nothing in {source.path} fits {model}: use --model to name the model that it was made for")
    log.info(f"weights from {source.path}: {report}")
    if source.metadata.get("fused"):
        log.info(
            "that file was fused for inference: its normalisation is gone and begins again; the unfused file is better"
        )
    licence: str | None = source.metadata.get("licence")
    if licence:
        log.info(f"these weights are under {licence}; that is kept in the files of this run")
    return licence


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
