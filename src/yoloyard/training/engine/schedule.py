"""Learning rate, momentum and accumulation as functions of the batch number, so that they have no state to save."""

import math
from dataclasses import dataclass

import torch

from yoloyard.config.settings import OptimizerConfig


@dataclass(frozen=True)
class Schedule:
    """Learning rates, momentum and accumulation at a batch of the run."""

    config: OptimizerConfig
    epochs: int
    batches_per_epoch: int
    batch: int
    rate_factor: float = 1.0  # of all learning rates

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
        return max(1, round(1 + self._ramp(number) * (self.accumulate - 1)))

    def apply(self, optimizer: torch.optim.Optimizer, number: int) -> None:
        """Set the groups' learning rates and momentum for batch `number` (0-based, since the start of the run)."""
        ramp = self._ramp(number)
        for group in optimizer.param_groups:
            start = self.config.warmup_bias_lr if group["name"].endswith("bias") else 0.0
            group["lr"] = self.rate(number, start, group["lr_factor"])
            if "momentum" in group:
                low = self.config.warmup_momentum
                group["momentum"] = low + ramp * (self.config.momentum - low)

    def rate(self, number: int, start: float = 0.0, factor: float = 1.0) -> float:
        """Learning rate at batch `number` of a group whose warm-up leads from `start` to `factor` times the others'."""
        target = factor * self.config.lr0 * self.factor(number // self.batches_per_epoch)
        return (start + self._ramp(number) * (target - start)) * self.rate_factor

    def _ramp(self, number: int) -> float:
        return min(number / self.warmup_batches, 1.0) if self.warmup_batches else 1.0
