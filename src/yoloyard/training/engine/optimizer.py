"""Parameter groups, optimizers, and the schedules of learning rate, momentum and accumulation.

Every quantity is a function of the batch number since the start of the run, so that a resumed run needs no state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from yoloyard.common.errors import UsageError
from yoloyard.config.settings import OptimizerConfig
from yoloyard.training.engine.plain_optimizer import plain

OPTIMIZERS = ("SGD", "AdamW")
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


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, decay: float, fused: bool = True
) -> torch.optim.Optimizer:
    """SGD (Nesterov) or AdamW over the three groups, in the order weight, norm, bias.

    Fused optimizers alone look at `found_inf`, by which a bad step leaves no trace. SGD's momentum begins as zeros
    rather than at the first step, which may be a bad one.
    """
    groups = [
        {"params": parameters, "name": name, "weight_decay": decay if name == "weight" else 0.0}
        for name, parameters in parameter_groups(model).items()
        if parameters
    ]
    if not groups:
        raise UsageError("nothing is left to train: every parameter is frozen; lower --freeze")
    if config.optimizer == "AdamW":
        return plain(torch.optim.AdamW)(groups, lr=config.lr0, betas=(config.momentum, 0.999), fused=fused)
    nesterov = config.momentum > 0
    optimizer = plain(torch.optim.SGD)(groups, lr=config.lr0, momentum=config.momentum, nesterov=nesterov, fused=fused)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


@dataclass(frozen=True)
class Schedule:
    """Learning rates, momentum and accumulation at a batch of the run."""

    config: OptimizerConfig
    epochs: int
    batches_per_epoch: int
    batch: int

    @property
    def warmup_batches(self) -> int:
        """Batches of warm-up; it always leaves the last epoch to the schedule proper."""
        return round(min(self.config.warmup_epochs, max(self.epochs - 1, 0)) * self.batches_per_epoch)

    @property
    def accumulate(self) -> int:
        """Batches of one optimizer update, after warm-up."""
        return max(round(self.config.nbs / self.batch), 1)

    @property
    def decay(self) -> float:
        """Weight decay, given for a nominal batch, for the batch that an update really has."""
        return self.config.weight_decay * self.batch * self.accumulate / self.config.nbs

    def factor(self, epoch: int) -> float:
        """Learning rate of the 0-based epoch as a fraction of lr0."""
        lrf = self.config.lrf
        if self.config.cos_lr:
            return (1 - math.cos(math.pi * epoch / self.epochs)) / 2 * (lrf - 1) + 1
        return max(1 - epoch / self.epochs, 0) * (1 - lrf) + lrf

    def accumulate_at(self, number: int) -> int:
        """Batches of one update at batch `number` of the run: grows during warm-up."""
        ramp = self._ramp(number)
        return max(1, round(1 + ramp * (self.accumulate - 1)))

    def apply(self, optimizer: torch.optim.Optimizer, number: int) -> None:
        """Set the groups' learning rates and momentum for batch `number` (0-based, since the start of the run)."""
        ramp, target = self._ramp(number), self.config.lr0 * self.factor(number // self.batches_per_epoch)
        for group in optimizer.param_groups:
            start = self.config.warmup_bias_lr if group["name"] == "bias" else 0.0
            group["lr"] = start + ramp * (target - start)
            if "momentum" in group:
                low = self.config.warmup_momentum
                group["momentum"] = low + ramp * (self.config.momentum - low)

    def _ramp(self, number: int) -> float:
        return min(number / self.warmup_batches, 1.0) if self.warmup_batches else 1.0
