"""From a batch to gradients: all images at once, or in parts where the device has too little memory for that.

All processes exchange the same things in the same order: the norms of the loss, after a forward; the gradients, with
the last batch of an update. Between these exchanges each process makes parts alone, and no exchange is made twice.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed import DistError

from yoloyard.common.device import release_memory
from yoloyard.common.errors import TooLittleMemoryError, UserError, memory_line, no_image_fits
from yoloyard.common.structures import Batch, images_to_float
from yoloyard.training.engine import measures
from yoloyard.training.engine.checkpointing import without_statistics
from yoloyard.training.engine.measures import Parts
from yoloyard.training.engine.multi_scale import vary_size

if TYPE_CHECKING:
    from yoloyard.training.engine.engine import Engine


class BackwardPass:
    """Adds the gradients of this process's share of a batch to the parameters, in as many attempts as it takes."""

    def __init__(self, engine: "Engine", batch: Batch) -> None:
        self.engine, self.batch, self.is_due = engine, batch, engine.is_due
        self.norms: Tensor | None = None  # of all processes, once they have been exchanged
        self.left: list[nn.Parameter] = engine.parameters  # that have no gradient of this batch yet
        # of this process, where `measures` has it due; nan where the batch is computed in parts
        self.label_ratio: Tensor | None = None
        if measures.label_ratio_is_due(engine, batch):
            self.label_ratio = torch.full((), math.nan, device=engine.device)

    def run(self) -> Tensor:
        """The losses (parts,): gain * sum of this process / norm of all; nan where not even one image fits.

        Raises what `_give_up` raises, and UserError with `--sync-bn`.
        """
        engine = self.engine
        while True:
            before = [(each, each.grad, _changes(each.grad)) for each in self.left]
            images = min(engine.micro_batch, len(self.batch.images))
            try:
                return self._at_once() if images == len(self.batch.images) else self._in_parts(images)
            except Exception as error:
                if isinstance(error, DistError) or not memory_line(error):  # an exchange that failed can't be repeated
                    raise
                said = " ".join(str(error).split())[:300]
            # The error is gone here, and with it all that it held of the forward.
            self.left = [each for each, grad, count in before if each.grad is grad and _changes(grad) == count]
            release_memory(engine.device)
            if reason := engine.no_parts:
                raise UserError(f"the device has too little memory; {reason} allows no parts: lower --batch ({said})")
            if images == 1:
                return self._give_up(said)
            engine.micro_batch = (images + 1) // 2

    def _at_once(self) -> Tensor:
        """One forward, and a backward pass that may exchange gradients while it computes others."""
        engine, batch = self.engine, self._on_device(self.batch)
        with engine.around_step(), engine.strategy.exchanging(self.is_due):
            maps, parts = self._forward(engine.network, batch)
            if self.label_ratio is not None:
                self.label_ratio = measures.label_ratio(engine, maps, batch, parts)
            self.norms = self._of_all(self._norms(parts))
            losses = self._losses(parts, self.norms)
            self._scaled(losses).backward()
        return losses.detach()

    def _in_parts(self, images: int) -> Tensor:
        """So many images after the other; their gradients are added up apart, and given to the parameters at the end.

        A forward comes before the norms, as in `_at_once`: in its first ones DDP may exchange the order of gradients.
        Norms that follow from predictions are known after the last forward. Until then a guess takes their place.
        """
        engine, starts = self.engine, range(0, len(self.batch.images), images)
        parts = [self.batch.rows(slice(start, start + images)) for start in starts]
        # An exchange that has begun waits for the gradients that are left; no forward may begin another one.
        network = engine.model if self._has_begun else engine.network
        divisors = self.norms
        gradients: list[Tensor | None] = [None] * len(self.left)
        sums: list[Tensor] = []  # losses and norms of the parts
        with engine.strategy.exchanging(False):
            for part in parts:
                _, found = self._forward(network, self._on_device(part))
                if divisors is None:
                    divisors = self._divisors(network, parts, found)
                losses = self._losses(found, divisors)
                more = torch.autograd.grad(self._scaled(losses), self.left, allow_unused=True) if self.left else ()
                gradients = [_sum(*pair) for pair in zip(gradients, more, strict=True)]
                sums.append(torch.cat((losses.detach(), self._norms(found))))
                del found, losses, more
        assert divisors is not None
        total, norms = torch.stack(sums).sum(dim=0).tensor_split([len(engine.gains)])
        if self.norms is None:
            self.norms = self._of_all(norms)
        factor = (divisors / self.norms)[0]  # 1 if there was no guess
        self._add([None if each is None else each * factor.to(each.device) for each in gradients])
        return total * factor

    def _divisors(self, network: nn.Module, parts: list[Batch], first: Parts) -> Tensor:
        """The norms of all processes, or a guess by those of the `first` of the parts if they are one and the same.

        They follow from the labels where the loss has `norms`; where not, they need forwards of their own.
        """
        engine, norm = self.engine, next(iter(first.values()))[1]
        if len(norm) == 1 and all(each is norm for _, each in first.values()):
            return self._norms(first).clamp(min=1) * (len(parts) * engine.team.size)
        total, from_labels = torch.zeros_like(self._norms(first)), getattr(engine.criterion, "norms", None)
        with torch.no_grad(), without_statistics(network):
            for batch in map(self._on_device, parts):
                if from_labels is None:
                    total += self._norms(self._forward(network, batch)[1])
                else:
                    by_name = from_labels(batch.images.shape[2:], batch.boxes, batch.labels)
                    total += torch.cat([by_name[name] for name in engine.gains])
        self.norms = self._of_all(total)
        return self.norms

    def _give_up(self, said: str) -> Tensor:
        """End the step without an image: with losses that are nan, from which no process learns, and a stop for all.

        Raises TooLittleMemoryError if no other process waits, and UserError if what they wait for can't be told.
        """
        engine = self.engine
        if engine.team.size == 1:
            if len(self.left) < len(engine.parameters):  # a part of this batch's gradients is among the earlier ones
                engine.optimizer.zero_grad(set_to_none=True)
            raise TooLittleMemoryError(no_image_fits(said))
        if self.norms is None and not engine.norms:
            raise UserError(no_image_fits(said))
        engine.exhausted = no_image_fits(said)
        if self.norms is None:
            self.norms = self._of_all(torch.zeros(engine.norms, device=engine.device))
        self._add([torch.zeros_like(each) for each in self.left])
        return torch.full((len(engine.gains),), math.nan, device=engine.device)

    @property
    def _has_begun(self) -> bool:
        """Has an attempt begun to exchange gradients?"""
        return self.is_due and self.engine.team.size > 1 and len(self.left) < len(self.engine.parameters)

    def _on_device(self, batch: Batch) -> Batch:
        """The batch on the device, in the size that is drawn for it (`--multi-scale`)."""
        engine, number = self.engine, self.engine.number
        epoch, stride = number // engine.schedule.batches_per_epoch, max(engine.model.strides)
        return vary_size(batch.to(engine.device), engine.config, stride, epoch, number)

    def _forward(self, network: nn.Module, batch: Batch) -> tuple[list[Tensor], Parts]:
        """The network's maps, and the parts of the loss."""
        with self.engine.precision.autocast():
            maps = network(images_to_float(batch.images))
        return maps, self.engine.criterion(maps, batch.boxes, batch.labels)

    def _norms(self, parts: Parts) -> Tensor:
        return torch.cat([parts[name][1] for name in self.engine.gains]).detach()

    def _of_all(self, norms: Tensor) -> Tensor:
        """Norms of this process as those of all; at least 1. All processes call this once a batch."""
        self.engine.norms = len(norms)
        return self.engine.team.all_reduce(norms).clamp(min=1)

    def _losses(self, parts: Parts, norms: Tensor) -> Tensor:
        gains = self.engine.gains
        pairs = zip(gains, norms.split([len(parts[name][0]) for name in gains]), strict=True)
        return torch.stack([(gains[name] * parts[name][0] / norm).sum() for name, norm in pairs])

    def _scaled(self, losses: Tensor) -> Tensor:
        """What is backpropagated: the mean of all processes' gradients becomes that of one with the whole batch."""
        engine = self.engine
        return engine.scaler.scale(losses.sum() * (len(self.batch.images) * engine.team.size) * engine.team.size)

    def _add(self, gradients: list[Tensor | None]) -> None:
        self.engine.strategy.add_gradients(self.left, gradients, self.is_due and not self._has_begun)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _changes(gradient: Tensor | None) -> int:
    """How often it was changed in place."""
    return 0 if gradient is None else gradient._version
