"""Each process has a shard of each weight and a share of each batch: torch's fully_shard (FSDP2).

A block's weights are gathered from all processes for its forward and its backward pass, and freed again. Weights of
normalisations and scalars, a small part of any network, stay whole in each process: so a normalisation computes in
float32 beside convolutions in a shorter type, and is the same layer for the compiler and for `cpu/`.
"""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from yoloyard.common.device import Precision
from yoloyard.common.errors import UsageError
from yoloyard.common.structures import Batch
from yoloyard.models.detector import Detector
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.engine.optimizers import NORMALISATIONS
from yoloyard.training.engine.optimizers.plain import is_sharded
from yoloyard.training.strategies.alone import Strategy

if TYPE_CHECKING:
    from yoloyard.training.engine.engine import Engine

MAX_SHARED_NAMES = 8  # parameters of several blocks that are named


class Fsdp(Strategy):
    """Gradients become the mean over all processes with each batch, and are added up in shards.

    All processes must use the same weights in each batch. `offloads`: shards, their gradients and what the optimizer
    keeps of them lie in the host's memory. Weights become those of rank 0.
    """

    no_parts = "--strategy fsdp"  # an exchange within a forward can't be repeated by one process alone

    def __init__(self, model: Detector, team: Team, precision: Precision, offloads: bool = False) -> None:
        super().__init__(model, team)
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as shards must be
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)
        whole = kept_whole(model)
        # The copy that validation fills; its weights take no memory until then.
        empty = {
            parameter: nn.Parameter(parameter.to("meta"), parameter.requires_grad)
            for parameter in model.parameters()
            if parameter not in whole
        }
        self._bare = copy.deepcopy(model, {id(parameter): value for parameter, value in empty.items()})
        self.mesh = mesh_of(team, self.device.type)
        # Gathered in the type of the arithmetic: autograd keeps what it computes with, so a cast of a gathered weight
        # would stay in memory until the backward pass. Summed in float32, as all other strategies sum. Inputs are left
        # to autocast, as everywhere.
        policy = MixedPrecisionPolicy(precision.dtype, torch.float32, cast_forward_inputs=False)
        offload = CPUOffloadPolicy(pin_memory=self.device.type != "cpu") if offloads else OffloadPolicy()
        self.pieces = list(shardable(model.blocks))
        for module in (*self.pieces, model):
            fully_shard(module, mesh=self.mesh, mp_policy=policy, offload_policy=offload, ignored_params=whole)
            module.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]  # gloo of torch 2.8 has no mean

    def backward(self, engine: "Engine", batch: Batch) -> tuple[Tensor, Tensor | None]:
        found = super().backward(engine, batch)
        if engine.is_due:
            self._even_out_whole(engine.parameters)
        return found

    def settle(self, engine: "Engine") -> None:
        self._even_out_whole(engine.parameters)

    def unscale(
        self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
    ) -> None:
        own = [each.detach() for each in self.here(list(parameters))]
        for tensor, parameter in zip(own, parameters, strict=True):
            tensor.grad = None if parameter.grad is None else self.here([parameter.grad])[0]
        shown = SimpleNamespace(param_groups=[{"params": own}])  # the optimizer as if all here were whole
        scaler.unscale_(shown)  # type: ignore[arg-type]
        for found_inf in scaler._found_inf_per_device(shown).values():  # type: ignore[arg-type]
            found_inf.copy_(self.team.all_reduce(found_inf.to(self.device, copy=True)))

    @torch.no_grad()
    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        shards = nn.utils.get_total_norm(self.here([each for each in tensors if is_sharded(each)]))
        whole = nn.utils.get_total_norm([each for each in tensors if not is_sharded(each)])
        square = shards.to(self.device).square()
        dist.all_reduce(square, group=self.mesh.get_group(self.mesh.ndim - 1))
        return (square + whole.to(self.device).square()).sqrt()

    def whole(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor
        shard: DTensor = tensor.detach().to(self.device)  # type: ignore[assignment]
        return shard.full_tensor()

    @torch.no_grad()
    def part(self, parameter: Tensor, whole: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
            return super().part(parameter, whole)
        rows = -(-len(whole) // self.mesh.size(self.mesh.ndim - 1))  # of all shards but the last ones
        first = rows * self.mesh.get_local_rank(self.mesh.ndim - 1)
        shard: DTensor = torch.empty_like(parameter, requires_grad=False)  # type: ignore[assignment]
        shard.to_local().copy_(whole[first : first + rows])
        return shard

    def parts(self, own: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: self.part(own[name], value) if name in own else value for name, value in whole.items()}

    @torch.no_grad()
    def here(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]

    def copy(self) -> Detector:
        return copy.deepcopy(self._bare)

    def whole_model(self, model: Detector, state: Mapping[str, Tensor]) -> Detector:
        detector = self.copy()
        detector.load_state_dict({name: self.whole(value) for name, value in state.items()}, assign=True)
        return detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _even_out_whole(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make the gradients of weights that each process has as a whole their mean over all processes."""
        self.even_out([each.grad for each in parameters if each.grad is not None and not is_sharded(each)])


def kept_whole(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that are not sharded: those of normalisations, and scalars."""
    norms = [module for module in model.modules() if isinstance(module, NORMALISATIONS)]
    scalars = [parameter for parameter in model.parameters() if parameter.ndim == 0]
    return {*(parameter for module in norms for parameter in module.parameters(recurse=False)), *scalars}


def shardable(modules: Iterable[nn.Module | None]) -> Iterator[nn.Module]:
    """`modules`, each once; what is in them where they are mere lists, which have no forward."""
    for module in dict.fromkeys(modules):
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            yield from shardable(module.children())
        elif module is not None:
            yield module


def check_shardable(model: Detector) -> None:
    """Raise UsageError if blocks share parameters, which would have to be gathered for one block and freed for all."""
    blocks, whole = set(shardable(model.blocks)), kept_whole(model)
    block_of: dict[str, nn.Module] = {}  # by the name of a module: the innermost block that it is in
    names: dict[nn.Parameter, dict[nn.Module, str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        block_of[name] = module if module in blocks else block_of.get(name.rpartition(".")[0], model)
        for own, parameter in module.named_parameters(name, recurse=False):
            names.setdefault(parameter, {}).setdefault(block_of[name], own)
    several = [found for parameter, found in names.items() if len(found) > 1 and parameter not in whole]
    shared = [" = ".join(found.values()) for found in several]
    if shared:
        more = f" and {len(shared) - MAX_SHARED_NAMES} more" if len(shared) > MAX_SHARED_NAMES else ""
        raise UsageError(
            f"--strategy fsdp: blocks of the network share parameters ({', '.join(shared[:MAX_SHARED_NAMES])}{more}); "
            "use --strategy ddp"
        )


def mesh_of(team: Team, device_type: str) -> DeviceMesh:
    """All processes in a row, or where several hosts have the same number of them, more than one, (hosts, processes).

    Weights are sharded over the last dimension alone: within a host, whose network is fast, and repeated on each host.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", team.size))
    if 1 < team.min(here) == team.max(here) < team.size:
        return init_device_mesh(device_type, (team.size // here, here), mesh_dim_names=("hosts", "processes"))
    return init_device_mesh(device_type, (team.size,))
