"""The state of torch's optimizers as flat names, `NUMBER.NAME`: number of the parameter, name of the value."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors that `optimizer` keeps of its parameters; one that has never had a gradient may have none."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, entry in state.items() for name, value in entry.items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave. Raises ValueError if it is of more parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    if state and max(state) >= len(parameters):
        raise ValueError(f"it holds the optimizer state of {max(state) + 1} parameters, not of {len(parameters)}")
    for position, entry in state.items():
        parameter = parameters[position]
        optimizer.state[parameter] = {
            name: laid_out_as(parameter, value) if value.shape == parameter.shape else value.to(parameter.device)
            for name, value in entry.items()
        }


def laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` in the memory layout of `parameter`, which fused optimizers want. Raises ValueError for another shape."""
    if value.shape != parameter.shape:
        raise ValueError(f"a tensor of shape {tuple(value.shape)} does not fit a parameter of {tuple(parameter.shape)}")
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
