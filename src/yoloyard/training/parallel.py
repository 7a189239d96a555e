"""The little that the training step must know of other processes. In one process all of it does nothing."""

import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process; number 0 writes and talks."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, on the device, without waiting for it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values
