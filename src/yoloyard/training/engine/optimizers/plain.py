"""torch's optimizers without torch's compiler, whose import is the longest part of a start, and about 100 MB."""

import inspect
from typing import TypeVar

import torch

Class = TypeVar("Class", bound=type[torch.optim.Optimizer])
METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def is_sharded(tensor: torch.Tensor) -> bool:
    """Is it torch's DTensor, of which a shard lies here? The import of its class takes half a second."""
    return hasattr(tensor, "placements")


def plain(optimizer: Class) -> Class:
    """The class `optimizer` with its methods as they were before torch wrapped them for its compiler."""
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in METHODS}
    step = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), {**methods, "step": step})  # type: ignore[return-value]
