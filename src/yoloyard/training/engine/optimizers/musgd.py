"""MuSGD: before each step of SGD, weights with 2 or 4 dimensions move along their orthogonalised mean gradient.

Sources: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); YOLO26 (2026), which adds SGD.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from yoloyard.common.device import choose_precision
from yoloyard.config.settings import OptimizerConfig
from yoloyard.models.heads import Head
from yoloyard.training.engine.optimizers import sgd
from yoloyard.training.engine.optimizers.plain import is_sharded

MUON_SHARE = 0.2  # of the learning rate
CLASS_RATE = 3.0  # learning rate of branches that learn classes, as a multiple of the others'
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of X, (X X') X and (X X')^2 X
NEWTON_SCHULZ_STEPS = 5
MIN_NORM = 1e-7


class MuSGD(sgd.SGD):  # type: ignore[misc, valid-type]
    """Keeps two momenta of a matrix: that of SGD, a sum, and `mean_gradient`. Others are trained by SGD alone.

    A step on whose `found_inf` () is 1 changes nothing. Weights whose matrices have equal sides are orthogonalised
    together.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters that have a gradient."""
        alike = defaultdict(list)  # weights and their learning rates, by device and sides of their matrices
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and is_matrix(weight):
                    sides = sorted((len(weight), weight.numel() // len(weight)))
                    alike[weight.device, *sides].append((weight, group))
        for found in alike.values():
            updates = [_matrix(_whole(self._mixed(weight, group["momentum"]))) for weight, group in found]
            directions = orthogonalised(torch.stack(updates))
            if (found_inf := getattr(self, "found_inf", None)) is not None:
                directions = torch.where(found_inf.to(directions.device) > 0, 0, directions)
            for (weight, group), direction in zip(found, directions.unbind(), strict=True):
                height, width = weight.shape[-2:]
                rate = MUON_SHARE * group["lr"] * math.sqrt(max(1, height / width))
                weight.add_(_like(weight, direction.to(weight.dtype)), alpha=-rate)
        super().step()

    def _mixed(self, weight: Tensor, momentum: float) -> Tensor:
        """The gradient of `weight` and its mean, which follows, mixed as Nesterov does."""
        gradient, mean = weight.grad, self.state[weight]["mean_gradient"]
        assert gradient is not None
        if (found_inf := getattr(self, "found_inf", None)) is not None:
            gradient = torch.where(found_inf.to(mean.device) > 0, mean, gradient)  # by which the mean stays as it is
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)


def build(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """MuSGD, fused but for shards. Both momenta begin as zeros."""
    optimizer = sgd.build(groups, config, MuSGD)
    for group in optimizer.param_groups:
        for parameter in filter(is_matrix, group["params"]):
            optimizer.state[parameter]["mean_gradient"] = torch.zeros_like(parameter)
    return optimizer


def is_matrix(parameter: Tensor) -> bool:
    """Is it moved along orthogonalised gradients, too?"""
    return parameter.ndim in (2, 4)


def class_branches(head: Head) -> set[nn.Parameter]:
    """Parameters of the branches of `head` that learn classes and nothing else.

    Such a branch ends in one of its `last_layers`, none of whose channels belongs to boxes.
    """
    if head.class_rows(head.num_classes)[0]:
        return set()
    found: set[nn.Parameter] = set()
    for name in head.last_layers:
        while isinstance(head.get_submodule(name.rpartition(".")[0]), nn.Sequential):
            name = name.rpartition(".")[0]
        found.update(head.get_submodule(name).parameters())
    return found


def orthogonalised(matrices: Tensor) -> Tensor:
    """`matrices` (n, rows, columns), rows <= columns, with singular values near 1, by Newton-Schulz iterations.

    As published, the matrices, their norms and each result are rounded to bfloat16, once; sums inside are of float32.
    Products of rounded numbers are computed in float32 and rounded then, but for GPUs that are quicker in bfloat16.
    """
    device = matrices.device
    native = device.type == "cuda" and choose_precision(device, amp=True).dtype == torch.bfloat16
    dtype = torch.bfloat16 if native else torch.float32

    def rounded(values: Tensor) -> Tensor:
        return values.copy_(values.bfloat16())

    first, second, third = NEWTON_SCHULZ
    matrices = matrices.bfloat16().float()
    norms = torch.linalg.matrix_norm(matrices, keepdim=True).bfloat16().float()
    found = rounded((matrices / (norms + MIN_NORM)).to(dtype))
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = rounded(found @ found.mT)
        factor = rounded(torch.baddbmm(square, square, square, beta=second, alpha=third))
        found = rounded(torch.baddbmm(found, factor, found, beta=first))
    return found


def _matrix(weight: Tensor) -> Tensor:
    """`weight` with a row for each output or, where these are more, for each input; in channels_last without a copy."""
    matrix = weight.movedim(1, -1).flatten(1)
    return matrix if len(matrix) <= matrix.shape[1] else matrix.mT


def _like(weight: Tensor, matrix: Tensor) -> Tensor:
    """What lies here of `matrix`, in the shape of the `weight` that `_matrix` has changed."""
    matrix = matrix if len(matrix) == len(weight) else matrix.mT
    whole = matrix.reshape(weight.movedim(1, -1).shape).movedim(-1, 1)
    if not is_sharded(weight):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(weight, DTensor)
    return distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None).to(weight.device)


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which a shard lies here, on the device on which processes exchange."""
    if not is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    there: DTensor = tensor.to(tensor.device_mesh.device_type)  # type: ignore[assignment]
    return there.full_tensor()
