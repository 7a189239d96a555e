"""The training step: forward, loss, backward, clip, update, average. Nothing in it waits for the device.

Whether losses and gradients are finite is decided on the device. If they are not, weights, average and BatchNorm's
statistics stay as they were. The host reads about it a step later, with the flag that asks to stop.
All processes exchange twice in a step: the norms of the loss, which the backward pass needs, and a small tensor of
losses and flags. The gradients are exchanged with the last batch of an update. `backward.py` goes from a batch to
gradients, in parts where the device has too little memory.
"""

import dataclasses
import logging
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from yoloyard.common.device import Precision
from yoloyard.common.structures import Batch
from yoloyard.config.settings import TrainConfig
from yoloyard.losses import Criterion
from yoloyard.models.detector import Detector
from yoloyard.training.engine import measures
from yoloyard.training.engine.ema import ExponentialMovingAverage, Statistics
from yoloyard.training.engine.optimizers import build_optimizer, by_kind, load_optimizer_state, optimizer_state, trained
from yoloyard.training.engine.schedule import Schedule
from yoloyard.training.strategies.alone import Strategy

log = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 10.0
MAX_UNREACHED_NAMES = 8  # parameters without a gradient that are named


class Flags(NamedTuple):
    """What the host must know of a step."""

    skipped: bool  # nothing was updated, since a loss or a gradient was not finite
    losses_finite: bool  # the losses of all batches of the update were finite
    stop: bool  # a process was asked to stop
    save: bool  # a process was asked to save


class Figures(NamedTuple):
    """What a step has measured, on the host; nan is what this step did not measure."""

    number: int  # of the batch in the run, from 0
    losses: tuple[float, ...]  # of all processes
    gradient_norm: float  # before clipping; nan where no update was due
    scale: float  # of the loss; 1 without a scaler
    update_ratio: float  # length of the update over that of the weights
    label_ratio: float  # the loss over the loss with the labels of other images; mean of all processes


@dataclass
class Verdict:
    """Flags and figures of a step on their way to the host."""

    values: Tensor
    arrival: torch.Event | None
    images: tuple[int, ...] | None
    number: int = 0

    def read(self) -> Flags:
        """The flags; waits for the device until the step is done."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return Flags(*(flag > 0 for flag in self.values[:4].tolist()))

    def figures(self) -> Figures:
        """The figures, once `read` has waited for them."""
        norm, scale, update, labels, *losses = self.values[4:].tolist()
        return Figures(self.number, tuple(losses), norm if self.images is not None else math.nan, scale, update, labels)


@dataclass(frozen=True)
class StepReport:
    """What a step did, still on the device; losses and flags are those of all processes."""

    losses: Tensor  # (parts,)
    gradient_norm: Tensor  # () before clipping; 0 where no update was due
    found_inf: Tensor  # () 1 where an update was due and changed nothing
    losses_finite: Tensor  # () 1 where the losses were finite since the last update
    asked: Tensor  # (2,) how many processes were asked to stop, and to save
    measured: Tensor  # (3,) scale of the loss, update ratio and label ratio; nan where not measured
    number: int  # of the batch in the run, from 0
    images: tuple[int, ...] | None = None  # of this process since the last update (source ids), where one was due

    def send(self) -> Verdict:
        """Begin to copy flags and figures to the host. They are read a step later, so that the host does not wait."""
        flags, norm = torch.stack((self.found_inf, self.losses_finite)), self.gradient_norm[None]
        values = torch.cat((flags, self.asked, norm, self.measured, self.losses)).to("cpu", non_blocking=True)
        arrival = None
        if self.found_inf.device.type != "cpu":  # `values` may hold anything until the copy is done
            arrival = torch.Event(self.found_inf.device.type)
            arrival.record()
        return Verdict(values, arrival, self.images, self.number)


class Engine:
    """A detector and all that trains it; `criterion` and `gains` are of the loss of its head.

    `strategy` shares its work with other processes or devices. `around_step()` is entered before a forward and left
    after the backward pass. `asked()` is called once a step: shall the run stop, and shall it save?
    """

    def __init__(
        self,
        model: Detector,
        criterion: Criterion,
        gains: Mapping[str, float],
        precision: Precision,
        config: TrainConfig,
        batches_per_epoch: int,
        strategy: Strategy | None = None,
        around_step: Callable[[], AbstractContextManager[object]] = nullcontext,
        asked: Callable[[], tuple[bool, bool]] = lambda: (False, False),
    ) -> None:
        self.model, self.strategy = model, strategy or Strategy(model)
        self.criterion, self.gains = criterion, dict(gains)
        self.precision, self.scaler, self.config = precision, precision.scaler(), config
        self.team = self.strategy.team
        self.schedule = Schedule(config.optimization, config.epochs, batches_per_epoch, config.batch)
        self.optimizer = build_optimizer(model, config.optimization, self.schedule.decay)
        self.average = ExponentialMovingAverage(self.strategy, config.optimization.ema_ramp)
        self.number = 0  # of the next batch
        self.last_update = -1  # the batch that ended it
        self.micro_batch = sys.maxsize  # images that this process computes at once; lowered where memory is short
        self._agreed = sys.maxsize  # the micro-batch that all processes know of
        self.exhausted = ""  # the message where not even one image fits
        self.norms = 0  # how many the loss has; known after the first batch
        self.around_step, self._asked = around_step, asked
        self.parameters, self.device = trained(model), self.strategy.device
        self._kinds = by_kind(self.parameters)
        self.statistics = Statistics(model, self.average.model, self.device)
        self._losses_finite = torch.ones((), device=self.device)  # of the batches since the last update
        # of the epoch: losses (parts,), finite batches, gradient norms, finite updates
        self._sums = torch.zeros(len(self.gains) + 3, device=self.device)
        self._images: list[int] = []  # that the next update learns from
        self._has_updated = False
        self._watched = measures.watched(self.optimizer)
        self._not_measured = torch.full((), math.nan, device=self.device)
        self._label_ratio = self._update_ratio = self._not_measured

    def step(self, batch: Batch) -> StepReport:
        """Train on this process's share of the next batch of the run; an update is made every few batches."""
        number = self.number
        self._label_ratio = self._update_ratio = self._not_measured
        self.schedule.apply(self.optimizer, number)
        if hasattr(self.criterion, "set_epoch"):
            self.criterion.set_epoch(number // self.schedule.batches_per_epoch, self.schedule.epochs)
        is_due = self.is_due
        losses, asked = self.backward(batch)
        self._images += batch.source_ids
        finite = torch.isfinite(losses).all()
        losses_finite = self._losses_finite = self._losses_finite * finite
        self._sums[:-3] += torch.where(finite, losses, 0)
        self._sums[-3] += finite
        self.number += 1
        if not is_due:
            none = torch.zeros_like(losses_finite)
            return StepReport(losses, none, none, losses_finite, asked, self._measured(), number)
        norm, found_inf = self.update()
        self.last_update = number
        good = found_inf == 0
        self._sums[-2] += torch.where(good, norm, 0)
        self._sums[-1] += good
        images, self._images = tuple(self._images), []
        return StepReport(losses, norm, found_inf, losses_finite, asked, self._measured(), number, images)

    @property
    def network(self) -> nn.Module:
        """The model as the step calls it."""
        return self.strategy.network

    @property
    def no_parts(self) -> str:
        """What allows no batch to be computed in parts; empty if nothing."""
        if self.config.sync_bn and self.team.size > 1:  # no process can repeat a forward alone
            return "--sync-bn"
        return self.strategy.no_parts

    @property
    def is_due(self) -> bool:
        """Does the next batch end an update?"""
        return self.number - self.last_update >= self.schedule.accumulate_at(self.number)

    def backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Add a batch's gradients to the parameters; returns the losses (parts,) and what was `asked` (2,).

        The losses are those of all processes, in the order of `gains`: gain * sum / norm, with the norm of all. Their
        product with images and processes is backpropagated, so that the mean over processes, which follows if an update
        is due, is the gradient of one process with the whole batch. A parameter that the batch does not reach gets no
        gradient. Where memory is short it is done in parts, and a save is asked for. Where not even one image fits, all
        processes are asked to stop, or TooLittleMemoryError is raised if there is only one.
        """
        losses, label_ratio = self.strategy.backward(self, batch)
        if label_ratio is not None:
            self._label_ratio = self.team.all_reduce(label_ratio) / self.team.size
        stop, save = self._asked()
        flags = stop or bool(self.exhausted), save or self.micro_batch != self._agreed
        asked = [torch.full_like(losses[:1], float(each)) for each in flags]
        shared = self.team.all_reduce(torch.cat((losses, *asked)))
        return shared[:-2], shared[-2:]

    def update(self) -> tuple[Tensor, Tensor]:
        """One update with the gradients that were added up; returns their norm () before clipping, and found_inf ().

        That is 1 where nothing was changed, since a loss or a gradient was not finite. A parameter without a gradient
        stays as it is. Waits for the device only for an optimizer that has no fused form.
        """
        if names := self.without_gradient():
            shown = ", ".join(names[:MAX_UNREACHED_NAMES])
            more = f" and {len(names) - MAX_UNREACHED_NAMES} more" if len(names) > MAX_UNREACHED_NAMES else ""
            log.info(f"no gradient reaches these parameters; they stay as they are until one does: {shown}{more}")
        self._has_updated = True
        if self.scaler.is_enabled():
            self.strategy.unscale(self.scaler, self.optimizer, self.parameters)
        norm = self.strategy.norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        for kind in self._kinds:
            nn.utils.clip_grads_with_norm_(kind, MAX_GRADIENT_NORM, norm)
        # Gradients and losses are those of all processes, so all decide alike.
        found_inf = (~torch.isfinite(norm) | (self._losses_finite == 0)).float()
        is_measured = (
            bool(self._watched)
            and (self.number - 1) // measures.UPDATES_PERIOD > self.last_update // measures.UPDATES_PERIOD
        )
        watched = [weight for weight in self._watched if weight.grad is not None] if is_measured else []
        before = [weight.detach().clone() for weight in watched]
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):  # torch's mark of a fused one
            self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not found_inf.item():
            self.optimizer.step()
        if is_measured:
            self._update_ratio = measures.update_ratio(watched, before, found_inf, self.strategy.norm)
        if self.scaler.is_enabled():
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.statistics.put_back(found_inf)
        self.average.update(found_inf)
        self._losses_finite = torch.ones_like(self._losses_finite)
        return norm, found_inf

    def without_gradient(self) -> list[str]:
        """Names of the trainable parameters that have no gradient before the first update; later nothing."""
        if self._has_updated:
            return []
        named = self.model.named_parameters()
        names = [name for name, parameter in named if parameter.requires_grad and parameter.grad is None]
        return self.strategy.in_all(names)

    def _measured(self) -> Tensor:
        """(3,) for `StepReport`."""
        scale = self.scaler._get_scale_async() if self.scaler.is_enabled() else None  # the public one waits
        one = torch.ones_like(self._not_measured)
        return torch.stack((one if scale is None else scale, self._update_ratio, self._label_ratio))

    def is_bad(self, flags: Flags) -> bool:
        """Was the step a bad one? A scaler that lowers its scale while all losses are finite is none."""
        return flags.skipped and not (self.scaler.is_enabled() and flags.losses_finite)

    def plan(self, epochs: int) -> None:
        """From now on the schedule is that of a run of `epochs`."""
        self.schedule = dataclasses.replace(self.schedule, epochs=epochs)

    def slow_down(self, factor: float) -> None:
        """From now on the learning rates are `factor` of those that the settings ask for."""
        self.schedule = dataclasses.replace(self.schedule, rate_factor=factor)

    def rates(self) -> dict[str, float]:
        """The learning rate of each group of parameters, as in the last batch."""
        self.schedule.apply(self.optimizer, self.number - 1)
        return {group["name"]: group["lr"] for group in self.optimizer.param_groups}

    def means(self) -> tuple[dict[str, float], float]:
        """Means of the epoch up to now: each part of the loss, and the gradients' norm. Waits for the device."""
        *parts, batches, norms, updates = self._sums.tolist()
        losses = {name: value / max(batches, 1) for name, value in zip(self.gains, parts, strict=True)}
        return losses, norms / max(updates, 1)

    def begin_epoch(self) -> None:
        """Begin the means of another epoch."""
        self._sums.zero_()

    def agree_on_micro_batch(self) -> int:
        """All processes take the smallest micro-batch; returns it if it is smaller than at the last call, else 0."""
        before, self._agreed = self._agreed, self.team.min(self.micro_batch)
        self.micro_batch = self._agreed
        return self.micro_batch if self.micro_batch < before else 0

    def even_out_statistics(self) -> None:
        """Give all processes the mean of BatchNorm's statistics, before a validation or a checkpoint."""
        self.strategy.even_out(self.statistics.all)

    @torch.no_grad()
    def settle(self) -> bool:
        """Before `state_dict`: make gradients and statistics equal in all processes; drop bad gradients and say so."""
        self.strategy.settle(self)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        is_bad = not (bool(torch.isfinite(self.strategy.norm(gradients))) and bool(self._losses_finite))
        if is_bad:
            self.optimizer.zero_grad(set_to_none=True)
            self._images = []
            self._losses_finite = torch.ones_like(self._losses_finite)
            self.statistics.put_back(torch.ones((), device=self.device))
        self.even_out_statistics()
        return is_bad

    def averaged(self) -> Detector:
        """The average as a detector of this process alone; all processes call this, and get the same."""
        self.even_out_statistics()
        return self.strategy.whole_model(self.average.model, self.average.values)

    def whole_model(self) -> Detector:
        """The model, or where it lies here in part, a copy of this process alone; all processes call this."""
        return self.strategy.whole_model(self.model, self.model.state_dict())

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """All that a step depends on, in named parts; tensors are the live ones, all else is JSON. `settle` before."""
        return {
            "model": dict(self.model.state_dict()),
            "ema": self.average.state_dict(),
            "optimizer": optimizer_state(self.optimizer, self.parameters),
            "gradients": {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None},
            "engine": {
                "sums": self._sums,
                "good_statistics": self.statistics.good,
                "losses_finite": self._losses_finite,
                "number": self.number,
                "last_update": self.last_update,
                "micro_batch": self.micro_batch,
                "scaler": self.scaler.state_dict(),
            },
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Put back what `state_dict` gave. Raises KeyError, ValueError or RuntimeError if a part doesn't fit."""
        own = state["engine"]
        self.model.load_state_dict(self.strategy.parts(self.model.state_dict(), state["model"]))
        self.average.load_state_dict(state["ema"])
        load_optimizer_state(self.optimizer, self.parameters, state["optimizer"], self.strategy.part)
        for name, parameter in self.model.named_parameters():
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else self.strategy.part(parameter, gradient)
        saved = own["scaler"]
        if saved and self.scaler.is_enabled():
            self.scaler.load_state_dict(saved)
        if (ratio := self.scaler.get_scale() / saved.get("scale", 1.0)) != 1:  # gradients that wait for an update
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad *= ratio
        self.statistics.good = own["good_statistics"].to(self.statistics.good.device, copy=True)
        self._losses_finite = own["losses_finite"].to(self.device, copy=True)
        self._sums = own["sums"].to(self.device, copy=True)
        self.number, self.last_update = own["number"], own["last_update"]
        if not self.no_parts:  # which the strategy that saved may have allowed
            self._agreed = min(self._agreed, own.get("micro_batch", sys.maxsize))
        self.micro_batch = min(self.micro_batch, self._agreed)  # it never grows, after a rollback neither
        self._images = []
