"""Optimizers: a line in OPTIMIZERS and a file each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from yoloyard.common.errors import UsageError
from yoloyard.config.settings import OptimizerConfig
from yoloyard.training.engine.optimizers import adamw, sgd

# From torch's parameter groups and the settings to the optimizer. A fused one decides on the device whether a step is
# bad; for any other the host decides, and waits for the device at each update.
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimizerConfig], torch.optim.Optimizer]] = {
    "SGD": sgd.build,
    "AdamW": adamw.build,
}
NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters, each once, as `weight` (decayed), `norm` and `bias` (both not decayed)."""
    groups: dict[str, list[nn.Parameter]] = {"weight": [], "norm": [], "bias": []}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            if "bias" in f"{module_name}.{name}":
                groups["bias"].append(parameter)
            elif isinstance(module, NORMALISATIONS):
                groups["norm"].append(parameter)
            else:
                groups["weight"].append(parameter)
    return groups


def build_optimizer(model: nn.Module, config: OptimizerConfig, decay: float) -> torch.optim.Optimizer:
    """The optimizer that `config` names over the groups weight, norm and bias, in this order; `decay` is of weight.

    Raises UsageError if no parameter is left to train.
    """
    groups = [
        {"params": parameters, "name": name, "weight_decay": decay if name == "weight" else 0.0}
        for name, parameters in parameter_groups(model).items()
        if parameters
    ]
    if not groups:
        raise UsageError("nothing is left to train: every parameter is frozen; lower --freeze")
    return OPTIMIZERS[config.optimizer](groups, config)
