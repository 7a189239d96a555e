"""From a batch to gradients: at once, or in ever smaller parts where the device has too little memory for that.

Each process decides alone, since all keep to one sequence of exchanges: the norms of the loss, after a forward; the
gradients, with the last batch of an update. What was reached before the memory was exhausted stays: norms that were
exchanged, and parameters that have their gradient of this batch. So nothing is exchanged or added up a second time.

In parts, gradients are kept apart until they are whole, so those of earlier batches are not scaled with them. The loss
is divided by the norms of the whole batch, which are known only after the last forward where they follow from the
predictions. A loss whose parts share one norm is then divided by a guess at first, which is put right at the end.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed import DistError

from yoloyard.common.device import release_memory
from yoloyard.common.errors import TooLittleMemoryError, memory_line
from yoloyard.common.structures import Batch, images_to_float
from yoloyard.training.distributed.ddp import add_gradients, exchanging
from yoloyard.training.engine import measures
from yoloyard.training.engine.multi_scale import vary_size

if TYPE_CHECKING:
    from yoloyard.training.engine.engine import Engine


class BackwardPass:
    """Adds the gradients of this process's share of a batch to the parameters, with as many images at once as fit."""

    def __init__(self, engine: "Engine", batch: Batch) -> None:
        self.engine, self.batch, self.is_due = engine, batch, engine.is_due
        self.images = len(batch.images) * engine.team.size
        self.norms: Tensor | None = None  # of all processes, once they have been exchanged
        self.left: list[nn.Parameter] = engine.parameters  # that have no gradient of this batch yet
        # of this process, where `measures` has it due; nan where the batch is computed in parts
        self.label_ratio: Tensor | None = None
        if engine.number % (measures.LABELS_PERIOD * engine.schedule.accumulate) == 0 and len(batch.images) > 1:
            self.label_ratio = torch.full((), math.nan, device=engine.device)

    def run(self) -> Tensor:
        """The losses (parts,): gain * sum of this process / norm of all.

        Raises TooLittleMemoryError where a single image is too much. The batch has changed nothing then, but where it
        had begun to add up gradients: all that waited for an update are dropped.
        """
        engine = self.engine
        while True:
            before = [(each.grad, 0 if each.grad is None else each.grad._version) for each in self.left]
            try:
                if 0 < engine.micro_batch < len(self.batch.images):
                    return self._in_parts()
                return self._at_once()
            except Exception as error:
                if isinstance(error, DistError) or not memory_line(error):  # an exchange that failed can't be repeated
                    raise
                said = " ".join(str(error).split())[:300]
            # The error is gone here, and with it all that it held of the forward.
            self.left = [
                parameter
                for parameter, (gradient, version) in zip(self.left, before, strict=True)
                if parameter.grad is gradient and (gradient is None or gradient._version == version)
            ]
            del before
            self._take_less(said)
            release_memory(engine.device)

    def _take_less(self, said: str) -> None:
        engine, advice = self.engine, ""
        images = min(engine.micro_batch or len(self.batch.images), len(self.batch.images))
        if any(isinstance(module, nn.SyncBatchNorm) for module in engine.model.modules()):
            advice = "--sync-bn allows no parts, so lower --batch"  # it exchanges in the forward, all processes alike
        elif images == 1:
            advice = "even for one image at a time: lower --imgsz, take a smaller --model or --checkpoint-activations"
        if advice:
            if len(self.left) < len(engine.parameters):  # a part of this batch's gradients is among the earlier ones
                engine.optimizer.zero_grad(set_to_none=True)
            raise TooLittleMemoryError(f"the device has too little memory, {advice} ({said})")
        engine.micro_batch = halved(images)

    def _at_once(self) -> Tensor:
        engine, batch = self.engine, self._on_device(self.batch)
        with engine.around_step(), exchanging(engine.network, self.is_due, engine.team):
            sums, norms = self._forward(engine.network, batch, is_whole=True)
            self.norms = self._of_all(torch.cat(norms).detach())
            losses = self._losses(sums, self.norms)
            engine.scaler.scale(losses.sum() * self.images * engine.team.size).backward()
        return losses.detach()

    def _in_parts(self) -> Tensor:
        engine = self.engine
        # An exchange that has begun waits for the gradients that are left; no forward may begin another one.
        has_begun = self.is_due and len(self.left) < len(engine.parameters)
        network = engine.model if has_begun else engine.network
        parts = split(self.batch, engine.micro_batch)
        guess: Tensor | None = None
        own: list[Tensor] = []  # norms
        losses: list[Tensor] = []
        gradients: list[Tensor | None] = [None] * len(self.left)

        def compute(part: Batch) -> None:
            """Its gradients and losses; at its end all else of it is gone."""
            nonlocal guess, gradients
            sums, norms = self._forward(network, self._on_device(part))
            if self.norms is None and guess is None:
                if len(norms[0]) == 1 and all(each is norms[0] for each in norms):
                    guess = norms[0].detach().clamp(min=1) * (len(parts) * engine.team.size)
                else:
                    self.norms = self._of_all(self._norms_of(network, parts))
            divisors = guess.expand(len(norms)) if self.norms is None and guess is not None else self.norms
            assert divisors is not None
            of_part = self._losses(sums, divisors)
            scaled = engine.scaler.scale(of_part.sum() * self.images * engine.team.size)
            more = torch.autograd.grad(scaled, self.left, allow_unused=True) if self.left else ()
            gradients = [b if a is None else a if b is None else a + b for a, b in zip(gradients, more, strict=True)]
            losses.append(of_part.detach())
            own.append(torch.cat(norms).detach())

        with exchanging(engine.network, False, engine.team):
            for part in parts:
                compute(part)
        total = torch.stack(losses).sum(dim=0)
        if self.norms is None and guess is not None:
            self.norms = self._of_all(torch.stack(own).sum(dim=0))
            factor = guess / self.norms[:1]
            gradients = [None if gradient is None else gradient * factor for gradient in gradients]
            total = total * factor
        add_gradients(engine.network, self.left, gradients, self.is_due and not has_begun, engine.team)
        return total

    def _on_device(self, batch: Batch) -> Batch:
        """The batch on the device, in the size that is drawn for it (`--multi-scale`)."""
        engine, number = self.engine, self.engine.number
        epoch, stride = number // engine.schedule.batches_per_epoch, max(engine.model.strides)
        return vary_size(batch.to(engine.device), engine.config, stride, epoch, number)

    def _forward(self, network: nn.Module, batch: Batch, is_whole: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """Sums and norms of this process, (L,) each, in the order of the gains."""
        engine = self.engine
        with engine.precision.autocast():
            maps = network(images_to_float(batch.images))
        parts = engine.criterion(maps, batch.boxes, batch.labels)
        if is_whole and self.label_ratio is not None:
            self.label_ratio = measures.label_ratio(engine.criterion, engine.gains, maps, batch, parts)
        return [parts[name][0] for name in engine.gains], [parts[name][1] for name in engine.gains]

    def _of_all(self, norms: Tensor) -> Tensor:
        """Norms of this process as those of all; at least 1. All processes call this once a batch."""
        return self.engine.team.all_reduce(norms).clamp(min=1)

    def _losses(self, sums: list[Tensor], norms: Tensor) -> Tensor:
        pairs = zip(self.engine.gains.values(), sums, norms.split([len(each) for each in sums]), strict=True)
        return torch.stack([(gain * each / norm).sum() for gain, each, norm in pairs])

    @torch.no_grad()
    def _norms_of(self, network: nn.Module, parts: list[Batch]) -> Tensor:
        """The norms of the whole share: by the labels, where the loss says them by `norms`, else by forwards."""
        engine, total = self.engine, torch.zeros(())
        from_labels = getattr(engine.criterion, "norms", None)
        for part in parts:
            batch = self._on_device(part)
            if from_labels is None:
                norms = self._forward(network, batch)[1]
            else:
                found = from_labels(batch.images.shape[2:], batch.boxes, batch.labels)
                norms = [found[name] for name in engine.gains]
            total = total.to(engine.device) + torch.cat(norms)
        return total


def halved(images: int) -> int:
    """Images of a part that is half as large, rounded up."""
    return (images + 1) // 2


def split(batch: Batch, images: int) -> list[Batch]:
    """The batch in parts of so many images, the last one perhaps of fewer."""
    parts = []
    for start in range(0, len(batch.images), images):
        rows = slice(start, start + images)
        tensors = {name: getattr(batch, name)[rows] for name in ("images", "boxes", "labels", "ignore")}
        parts.append(replace(batch, **tensors, image_ids=batch.image_ids[rows], transforms=batch.transforms[rows]))
    return parts
