"""The training step: forward, loss, backward, clip, update, average. Nothing in it waits for the device.

A bad step leaves no trace: whether loss and gradients are finite is decided on the device. If they are not, the
optimizer, the averages and BatchNorm's statistics (which the forward has already corrupt) stay as they were, and the
host hears of it a step later through `Outcome`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yoloyard.common.device import Precision
from yoloyard.common.structures import Batch, images_to_float
from yoloyard.losses import Criterion
from yoloyard.models.detector import Detector
from yoloyard.training.distributed.parallel import all_reduce, world_size
from yoloyard.training.engine.ema import ExponentialMovingAverage

LARGEST_GRADIENT_NORM = 10.0


def forward_backward(
    model: nn.Module,
    criterion: Criterion,
    batch: Batch,
    gains: Mapping[str, float],
    precision: Precision,
    scaler: torch.amp.GradScaler,
    images_in_batch: int,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """Add this batch's gradients to the parameters; returns the parts of the loss, (parts,), in the order of `gains`.

    The parts are those of all processes together. `images_in_batch` counts the images of all of them. Each part is
    gain * sum / norm with the norm of all processes; what is backpropagated is its product with images and processes,
    so that the mean over processes that follows gives the gradient of one process with the whole batch. A parameter
    that the batch does not reach gets no gradient, on every device and in every number of processes. `around` makes a
    context for forward and backward, see `cpu.prepare_training`.
    """
    with around():
        with precision.autocast():
            maps = model(images_to_float(batch.images))
        parts = criterion(maps, batch.boxes, batch.labels)
        norms = all_reduce(torch.cat([parts[name][1] for name in gains]).detach()).clamp(min=1)
        sizes = [len(parts[name][0]) for name in gains]
        losses = torch.stack(
            [
                (gain * parts[name][0] / norm).sum()
                for (name, gain), norm in zip(gains.items(), norms.split(sizes), strict=True)
            ]
        )
        scaler.scale(losses.sum() * images_in_batch * world_size()).backward()
    return all_reduce(losses.detach())


@dataclass
class Outcome:
    """What an update did, still on the device."""

    gradient_norm: Tensor  # () before clipping
    found_inf: Tensor  # () 1 where nothing was changed
    losses_finite: Tensor  # () 1 where the losses of all its batches were finite

    def send(self) -> Verdict:
        """Begin to copy what the host wants to know; the copy is read a step later, so that nobody waits for it."""
        flags = torch.stack((self.found_inf, self.losses_finite)).to("cpu", non_blocking=True)
        arrival = None
        if self.found_inf.device.type != "cpu":  # on whatever device: `flags` may hold anything until the copy is done
            arrival = torch.Event(self.found_inf.device.type)
            arrival.record()
        return Verdict(flags, arrival)


@dataclass
class Verdict:
    """The flags of an `Outcome` on their way to the host."""

    flags: Tensor
    arrival: torch.Event | None

    def read(self) -> tuple[bool, bool]:
        """Was nothing changed? Were the losses finite?"""
        if self.arrival is not None:
            self.arrival.synchronize()
        found_inf, losses_finite = self.flags.tolist()
        return found_inf > 0, losses_finite > 0


class Update:
    """Applies the accumulated gradients; remembers BatchNorm's statistics as they were after the last good update."""

    def __init__(
        self,
        model: Detector,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        ema: ExponentialMovingAverage,
    ) -> None:
        self.model, self.optimizer, self.scaler, self.ema = model, optimizer, scaler, ema
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._fused = optimizer.defaults["fused"]
        self._statistics, self._average_statistics = _statistics_of(model), _statistics_of(ema.model)
        self.good_statistics = self._flat_statistics()
        self.losses_finite = torch.ones((), device=self._parameters[0].device)
        self._updated_once = False

    def without_gradient(self) -> list[str]:
        """Names of the parameters that have no gradient, asked before the first update only; later nothing."""
        if self._updated_once:
            return []
        named = self.model.named_parameters()
        return [name for name, parameter in named if parameter.requires_grad and parameter.grad is None]

    def watch(self, losses: Tensor) -> None:
        """Note whether the losses (parts,) of a batch are finite; those of all batches of an update must be."""
        self.losses_finite *= torch.isfinite(losses).all()

    def __call__(self) -> Outcome:
        """One optimizer update with the accumulated gradients, unless a loss or a gradient is not finite.

        A parameter without a gradient stays as it is: no decay, no momentum.
        """
        self._updated_once = True
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, LARGEST_GRADIENT_NORM)
        # Gradients and losses are those of all processes, so all decide alike.
        found_inf = (~torch.isfinite(norm) | (self.losses_finite == 0)).float()
        if self._fused:  # others, which are for the tests without a device only, don't know these
            self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._put_statistics_back(found_inf)
        self.ema.update(found_inf)
        outcome = Outcome(norm, found_inf, self.losses_finite)
        self.losses_finite = torch.ones_like(self.losses_finite)
        return outcome

    def drop_bad_gradients(self) -> bool:
        """Before a checkpoint: forget accumulated gradients that are not finite, and what their batches corrupt.

        Waits for the device. Says whether there were any.
        """
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if all(bool(torch.isfinite(gradient).all()) for gradient in gradients) and bool(self.losses_finite):
            return False
        self.optimizer.zero_grad(set_to_none=True)
        self.losses_finite = torch.ones_like(self.losses_finite)
        self._put_statistics_back(torch.ones((), device=self.losses_finite.device))
        return True

    @torch.no_grad()
    def even_out_gradients(self) -> None:
        """Give all processes the mean of the gradients accumulated since the last update, before a checkpoint.

        Until an update is due each process has those of its own images, so a network that leaves a parameter out of
        some forwards may have a gradient of it in one process alone. Waits for the device.
        """
        if world_size() == 1:
            return
        there = [parameter.grad is not None for parameter in self._parameters]
        anywhere = all_reduce(torch.tensor(there, dtype=torch.int32, device=self.losses_finite.device)).tolist()
        for parameter, count in zip(self._parameters, anywhere, strict=True):
            if count and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        _even_out([parameter.grad for parameter in self._parameters if parameter.grad is not None])

    @torch.no_grad()
    def even_out_statistics(self) -> None:
        """Give all processes the mean of BatchNorm's statistics, which each has of its own images until then.

        In the model and in its average: before what must be equal everywhere, a validation or a checkpoint.
        """
        if self._statistics:
            _even_out([*self._statistics, *self._average_statistics, self.good_statistics])

    @torch.no_grad()
    def _put_statistics_back(self, found_inf: Tensor) -> None:
        if not self._statistics:
            return
        good = torch.where(found_inf > 0, self.good_statistics, self._flat_statistics())
        torch._foreach_copy_(self._statistics, _split_like(good, self._statistics))
        self.good_statistics = good

    def _flat_statistics(self) -> Tensor:
        if not self._statistics:
            return torch.zeros(0)
        return torch.cat([statistic.detach().flatten() for statistic in self._statistics])


def _statistics_of(model: nn.Module) -> list[Tensor]:
    """BatchNorm's running means and variances, which are changed in place alone."""
    return [
        buffer
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]


def _even_out(tensors: list[Tensor]) -> None:
    """Give `tensors` the mean that they have over all processes, in one exchange."""
    if world_size() > 1 and tensors:
        means = all_reduce(torch.cat([tensor.flatten() for tensor in tensors])) / world_size()
        torch._foreach_copy_(tensors, _split_like(means, tensors))


def _split_like(flat: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
