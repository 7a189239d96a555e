"""Optimizers: a line in OPTIMIZERS and a file each. Names in their state are `NUMBER.NAME`, by parameter and value."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yoloyard.common.errors import UsageError
from yoloyard.config.settings import OptimizerConfig
from yoloyard.models.detector import Detector
from yoloyard.training.engine.optimizers import adamw, musgd, sgd
from yoloyard.training.engine.optimizers.plain import is_sharded

# From torch's parameter groups and the settings to the optimizer. A fused one decides on the device whether a step is
# bad; for any other the host decides, and waits for the device at each update.
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimizerConfig], torch.optim.Optimizer]] = {
    "SGD": sgd.build,
    "AdamW": adamw.build,
    "MuSGD": musgd.build,
}
NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters, each once, as `weight` (decayed), `norm` and `bias` (both not decayed)."""
    groups: dict[str, list[nn.Parameter]] = {"weight": [], "norm": [], "bias": []}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                kind = "norm" if isinstance(module, NORMALISATIONS) else "weight"
                groups["bias" if "bias" in f"{module_name}.{name}" else kind].append(parameter)
    return groups


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters in the order that numbers them in the optimizer's state."""
    return [parameter for group in parameter_groups(model).values() for parameter in group]


def build_optimizer(model: Detector, config: OptimizerConfig, decay: float) -> torch.optim.Optimizer:
    """The optimizer of `config`; `decay` is of weights alone. Raises UsageError if no parameter is left to train.

    For MuSGD the branches that learn classes have groups of their own, `class_weight` and so on, and a higher rate.
    """
    classes = musgd.class_branches(model.head) if config.optimizer == "MuSGD" else set()
    groups: list[dict[str, Any]] = []
    for name, parameters in parameter_groups(model).items():
        options = {"name": name, "weight_decay": decay if name == "weight" else 0.0, "lr_factor": 1.0}
        of_classes = options | {"name": f"class_{name}", "lr_factor": musgd.CLASS_RATE}
        groups += [options | {"params": kind} for kind in by_kind([each for each in parameters if each not in classes])]
        groups += [of_classes | {"params": kind} for kind in by_kind([each for each in parameters if each in classes])]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise UsageError("nothing is left to train: every parameter is frozen; lower --freeze")
    return OPTIMIZERS[config.optimizer](groups, config)


def by_kind(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those that lie here as a whole and those of which a shard lies here: no operation takes both at once."""
    return [[each for each in parameters if is_sharded(each) is sharded] for sharded in (False, True)]


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
    """What `optimizer` keeps of its parameters: tensors, or plain values that JSON knows. There may be none yet.

    `parameters` are those of `trained`.
    """
    # Sorted, since safetensors reads values in any order, and processes gather one after the other.
    state = [sorted(optimizer.state.get(parameter, {}).items()) for parameter in parameters]
    return {f"{number}.{name}": value for number, entry in enumerate(state) for name, value in entry}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    saved: Mapping[str, Any],
    part: Callable[[nn.Parameter, Tensor], Tensor],
) -> None:
    """Put back what `optimizer_state` gave; `part` gives what lies here of a value that is as large as its parameter.

    Raises ValueError if it is of more parameters.
    """
    state: dict[int, dict[str, Any]] = {}
    for key, value in saved.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.state.clear()  # what is not saved had not begun yet
    if state and max(state) >= len(parameters):
        raise ValueError(f"it holds the optimizer state of {max(state) + 1} parameters, not of {len(parameters)}")
    for position, entry in state.items():
        parameter = parameters[position]
        for name, value in entry.items():
            if isinstance(value, Tensor):
                is_alike = value.shape == parameter.shape
                value = part(parameter, value) if is_alike else value.to(parameter.device, copy=True)
            optimizer.state[parameter][name] = value
