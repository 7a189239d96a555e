"""A network whose gradients become their mean over several processes: torch's DistributedDataParallel (DDP)."""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from yoloyard.training.distributed.collectives import Team


def parallelize(model: nn.Module, device: torch.device, team: Team, may_leave_out: bool = False) -> nn.Module:
    """The network that the step calls: `model` itself, or in several processes one that exchanges gradients.

    Parameters and buffers become those of rank 0. `may_leave_out`: a forward may leave out parameters, which torch then
    looks for at each exchange; without it such a network raises RuntimeError.
    """
    if team.size == 1:
        return model
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=0)
    devices = None if device.type == "cpu" else [device]
    wrapper = nn.parallel.DistributedDataParallel
    # No exchange of BatchNorm's statistics at every step; torch 2.13 gave that option another name.
    names = {"forward_sync_buffers", "broadcast_buffers"} & inspect.signature(wrapper).parameters.keys()
    # Gradients live in the memory that is exchanged, which saves one copy of them.
    options: dict[str, Any] = {max(names): False, "gradient_as_bucket_view": True}
    shared = _WithSpare(model, device) if may_leave_out else model
    return wrapper(shared, device_ids=devices, find_unused_parameters=may_leave_out, **options)


def exchanging(network: nn.Module, is_due: bool, team: Team) -> AbstractContextManager[None]:
    """Inside, a backward pass makes gradients their mean over all processes if `is_due`; else each adds up its own."""
    return nullcontext() if is_due or team.size == 1 else network.no_sync()  # type: ignore[operator]


def add_gradients(
    network: nn.Module, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], is_due: bool, team: Team
) -> None:
    """Add `gradients` to those of the `parameters` as a backward pass does that computes them.

    If `is_due`, the sums become their mean over all processes, among which others may make a backward pass itself. None
    stands for a parameter that is not reached.
    """
    reached = [pair for pair in zip(parameters, gradients, strict=True) if pair[1] is not None]
    roots = [parameter.view_as(parameter) for parameter, _ in reached]
    if is_due and team.size > 1:
        network.reducer.prepare_for_backward(roots)  # type: ignore[union-attr, operator]  # as a forward does
    if roots:
        torch.autograd.backward(roots, [gradient for _, gradient in reached])


class _WithSpare(nn.Module):
    """A network with a parameter that it never uses: where all are used, torch warns that the search is not needed."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network, self.spare = network, nn.Parameter(torch.zeros(1, device=device))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.network(images)
        return maps
