"""The network of a run and the weights that it starts with: random ones, or those of a file as far as they fit."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yoloyard.common.digests import file_sha256
from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.files import EXPORTED_FILES
from yoloyard.common.lineage import Step, data_name, known_history, longer_history, meaning
from yoloyard.config.settings import TrainConfig
from yoloyard.models import registry
from yoloyard.models.custom_model import CustomModel, beside, is_custom, read_custom
from yoloyard.models.detector import Detector
from yoloyard.models.pyramid import P2
from yoloyard.models.weights import WEIGHT_FILES, read_weights, transfer
from yoloyard.storage.address import is_address
from yoloyard.storage.fetch import local_weights, weights_name

log = logging.getLogger(__name__)

BOTH = "both"  # of the argument `paths`
WIDTHS = {  # arguments of models, and layers whose inputs have these widths
    "class_width": "head.class_branches.0.2.weight",
    "auxiliary_class_width": "head.auxiliary_class_branches.0.2.weight",
}
FILES = (*WEIGHT_FILES, *EXPORTED_FILES)  # the latter are refused by whoever reads them


@dataclass(frozen=True)
class StartingPoint:
    """The network of a new run, and the weights file that it starts from."""

    model: str  # a name of the registry, or FILE.py:FUNCTION with the whole path
    custom: CustomModel | None = None  # the user's file, if the model is in one
    file: Path | None = None  # None: random weights
    state: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def arguments(self, num_classes: int, end2end: bool = False, channels: int = 3) -> dict[str, Any]:
        """What the network is built with: class count and channels of the data, the rest as a file of this model says.

        With or without a level of stride 4 it is the same model. Class branches have the width that the file's have,
        whatever it would be for these classes and levels, or nothing of them could be taken.
        Branches that only training needs are there, whatever the file has of them. Raises UsageError if the model can't
        have those that `end2end` asks for.
        """
        is_same = str(self.metadata.get("model")).removesuffix(P2) == self.model.removesuffix(P2)
        same = self.metadata.get("model_arguments", {}) if is_same else {}
        of_file = ("num_classes", "channels", "auxiliary", "paths")  # a file for inference may lack some branches
        others = {name: value for name, value in same.items() if name not in of_file}
        if is_same and self.custom is None:
            others |= {name: self.state[last].shape[1] for name, last in WIDTHS.items() if last in self.state}
        families = registry.families_with_paths()
        if end2end and (is_custom(self.model) or not self.model.startswith(tuple(families))):
            raise UsageError(f"--end2end is for {', '.join(families)}; {self.model} has no such branches")
        of_data = {"num_classes": num_classes} | ({} if channels == 3 else {"channels": channels})
        return of_data | others | ({"paths": BOTH} if end2end or same.get("paths") == BOTH else {})

    def transfer(self, detector: Detector, names: tuple[str, ...]) -> str | None:
        """Put what fits of the file into `detector`; returns its licence. Raises UsageError if nothing fits."""
        if self.file is None:
            return None
        state, metadata = self.state, self.metadata
        if self.custom is not None and metadata.get("model") != self.custom.word:
            chosen = [f"head.{name}" for name in detector.head.constants]  # by the user's file
            state = {name: value for name, value in state.items() if name not in chosen}
        report = transfer(detector, state, names, metadata.get("names", ()))
        if not report.taken:
            raise UsageError(f"nothing in {self.file} fits {self.model}: use --model to name the model of that file")
        log.info(f"weights from {self.file}: {report}")
        if metadata.get("fused"):
            log.info("that file was fused for inference: its normalisation begins again; the unfused file is better")
        licence: str | None = metadata.get("licence")
        log.info(meaning(known_history(metadata)))
        return licence

    def history(self, config: TrainConfig) -> list[Step]:
        """The history of the weights that a run with `config` trains from these."""
        sha256 = file_sha256(self.file) if self.file else None
        name = weights_name(config.weights) if config.weights else None
        return longer_history(self.metadata, "trained", name, sha256, data=data_name(config.data))


def starting_point(given: Mapping[str, Any]) -> StartingPoint:
    """What `model` (a name, FILE.py:FUNCTION, a weights file) and `weights` mean. Raises UsageError or UserError."""
    model = registry.plain_name(given["model"]) if given.get("model") else None
    path = given.get("weights")
    if path is None and model is not None and (is_address(model) or Path(model).suffix.lower() in FILES):
        path, model = model, None
    file = local_weights(path) if path else None
    state, metadata = read_weights(file) if file else ({}, {})
    custom = read_custom(model) if model is not None and is_custom(model) else None
    if file is not None and model is None:
        if "model" not in metadata:
            raise UserError(f"{file} does not say which model it holds; add --model NAME")
        model = metadata["model"]
        custom = beside(file, metadata) if is_custom(model) else None
    if custom is not None:
        model = f"{custom.path}:{custom.function}"
    return StartingPoint(model or TrainConfig().model, custom, file, state, metadata)


def build_detector(model: str, custom: CustomModel | None, arguments: Mapping[str, Any]) -> Detector:
    """The network with random weights, on the CPU: of the user's file `custom` or, without one, of the registry."""
    return custom.build(**arguments) if custom else registry.build(model, **arguments)


def freeze(detector: Detector, what: str | None) -> None:
    """Freeze the first N published blocks, or parameters by prefixes of their names. Raises UsageError if unknown."""
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
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.train(any(parameter.requires_grad for parameter in module.parameters()))
