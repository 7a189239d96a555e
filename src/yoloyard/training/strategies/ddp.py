"""Each process has the whole model and a share of each batch: torch's DistributedDataParallel (DDP)."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from yoloyard.models.detector import Detector
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.strategies.alone import Strategy

if TYPE_CHECKING:
    from yoloyard.training.engine.engine import Engine


class Ddp(Strategy):
    """Gradients become their mean over all processes with the last batch of an update, while others are computed.

    Parameters and buffers become those of rank 0. `may_leave_out`: a forward may leave out parameters, which torch then
    looks for at each exchange; without it such a network raises RuntimeError. `compresses`: gradients are exchanged in
    bfloat16, and are float32 again before they are used.
    """

    def __init__(self, model: Detector, team: Team, may_leave_out: bool = False, compresses: bool = False) -> None:
        super().__init__(model, team)
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)
        device = next(model.parameters()).device
        devices = None if device.type == "cpu" else [device]
        wrapper = nn.parallel.DistributedDataParallel
        # No exchange of BatchNorm's statistics at every step; torch 2.13 gave that option another name.
        names = {"forward_sync_buffers", "broadcast_buffers"} & inspect.signature(wrapper).parameters.keys()
        # Gradients live in the memory that is exchanged, which saves one copy of them.
        options: dict[str, Any] = {max(names): False, "gradient_as_bucket_view": True}
        shared = _WithSpare(model, device) if may_leave_out else model
        self.network = wrapper(shared, device_ids=devices, find_unused_parameters=may_leave_out, **options)
        if compresses:
            self.network.register_comm_hook(None, _in_bfloat16)

    def exchanging(self, is_due: bool) -> AbstractContextManager[None]:
        return nullcontext() if is_due else self.network.no_sync()  # type: ignore[operator]

    def prepare_for_backward(self, roots: list[Tensor], is_due: bool) -> None:
        if is_due:
            self.network.reducer.prepare_for_backward(roots)  # type: ignore[union-attr, operator]  # as a forward does

    def settle(self, engine: "Engine") -> None:
        parameters = engine.parameters
        # A parameter may have a gradient in one process alone.
        there = [parameter.grad is not None for parameter in parameters]
        anywhere = self.team.all_reduce(torch.tensor(there, dtype=torch.int32, device=parameters[0].device)).tolist()
        for parameter, count in zip(parameters, anywhere, strict=True):
            if count and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.even_out([parameter.grad for parameter in parameters if parameter.grad is not None])


def _in_bfloat16(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """torch's hook, under a name with which gloo may have it: by its own name torch takes it for NCCL's alone."""
    return bf16_compress_hook(group, bucket)


class _WithSpare(nn.Module):
    """A network with a parameter that it never uses: where all are used, torch warns that the search is not needed."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network, self.spare = network, nn.Parameter(torch.zeros(1, device=device))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.network(images)
        return maps
