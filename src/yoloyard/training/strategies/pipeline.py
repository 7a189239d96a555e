"""The model's stages over several processes, for images that fit no single GPU: GPipe by torch.distributed.pipelining.

Each process has the whole model, its average and its optimizer, since weights are small. It computes the maps of its
own stage alone, which are large, and updates that stage alone. The rest comes from the other processes before a
validation and a checkpoint. Source: Huang et al., "GPipe" (2019).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from yoloyard.common.device import Precision
from yoloyard.common.errors import UserError, memory_line
from yoloyard.common.image_size import shape_of
from yoloyard.common.structures import Batch, images_to_float
from yoloyard.config.settings import TrainConfig
from yoloyard.models.detector import Detector
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.engine import measures
from yoloyard.training.engine.ema import split_like
from yoloyard.training.engine.optimizers import load_optimizer_state, optimizer_state
from yoloyard.training.strategies.alone import Strategy
from yoloyard.training.strategies.cutting import Stage, cut

if TYPE_CHECKING:
    from yoloyard.training.engine.engine import Engine

log = logging.getLogger(__name__)


def check_cuttable(config: TrainConfig, model: Detector) -> None:
    """Raise UsageError if `model`, on the CPU, can't be cut into a stage for each process."""
    cut(model, config.processes, _shape(config, config.processes, model.image_channels))


class Pipeline(Strategy):
    """Process N computes stage N of the model, of one micro-batch after the other.

    Parameters and buffers become those of rank 0. Gradients are those of one process with the whole batch, up to
    BatchNorm in training, which sees one micro-batch at a time. Raises UsageError if the model can't be cut.
    """

    no_parts = "--strategy pipeline"

    def __init__(self, config: TrainConfig, model: Detector, team: Team, precision: Precision) -> None:
        super().__init__(model, team)
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)
        shape = _shape(config, team.size, model.image_channels)
        stages, self.micro_batches = cut(model, team.size, shape, precision), config.batch // shape[0]
        states = [stage.module.state_dict(keep_vars=True).values() for stage in stages]
        self._owner = {tensor: rank for rank, state in enumerate(states) for tensor in state}
        self.is_first, self.is_last, stage = team.is_rank_0, team.rank == team.size - 1, stages[team.rank]
        takes, gives = map(_examples, (stage.takes, stage.gives))
        if self.is_first:
            layout = torch.channels_last  # which older versions of torch look at
            takes = (torch.empty(shape, dtype=torch.uint8, device="meta", memory_format=layout),)
        if self.is_last:
            gives = (torch.empty(1, device="meta", requires_grad=True),)
        # Without examples torch finds the shapes by one more forward and loss, of memory that nobody has written.
        place = team.rank, team.size, self.device
        computing = PipelineStage(_Computing(self, stage, precision), *place, input_args=takes, output_args=gives)
        self._schedule = ScheduleGPipe(computing, self.micro_batches, lambda loss, _: loss.sum(), scale_grads=False)
        cuts = ", ".join(f"{each.first} to {each.last} ({each.share:.0%} of the cost)" for each in stages)
        seen = f"BatchNorm in training sees {shape[0]} image{'s' * (shape[0] > 1)} at a time"
        log.info(f"pipeline: stages {cuts}; {self.micro_batches} micro-batches, so {seen}")

    @property
    def share(self) -> tuple[int, int]:
        return 0, 1

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            batch = next(batches, None) if self.is_first else None
            facts = self.team.broadcast(batch and replace(batch, images=batch.images[..., :0].clone()))
            if facts is None:
                return
            yield batch or facts

    def backward(self, engine: "Engine", batch: Batch) -> tuple[Tensor, Tensor | None]:
        for parameter in engine.parameters:
            if not self._is_own(parameter):
                parameter.grad = None  # of a checkpoint
        batch = batch.to(self.device)
        self.loss = loss = _Loss(engine, batch, self.micro_batches)
        try:
            with engine.around_step():
                self._schedule.step(*[batch.images] * self.is_first, target=torch.empty(self.micro_batches))
        except RuntimeError as error:
            cause = error.__cause__ or error  # torch wraps what the model raises
            if memory_line(cause):
                raise UserError(f"{memory_line(cause)}; or take more --processes for more stages") from error
            raise cause from None
        losses, ratio = loss.results() if self.is_last else (torch.zeros(len(engine.gains), device=self.device), None)
        if measures.label_ratio_is_due(engine, batch):  # a mean over processes is made of it
            ratio = torch.zeros((), device=self.device) if ratio is None else ratio * self.team.size
        return losses, ratio

    def unscale(
        self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
    ) -> None:
        scaler.unscale_(optimizer)
        found_inf: dict[Any, Tensor] = scaler._found_inf_per_device(optimizer)  # none without a gradient here
        self.team.all_reduce(found_inf.setdefault(self.device, torch.zeros((), device=self.device)))

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        return self.team.all_reduce(super().norm(tensors).to(self.device).square()).sqrt()

    def in_all(self, names: list[str]) -> list[str]:
        of_all = self.team.gather(set(names))
        return [name for name in names if all(name in found for found in of_all)]

    @torch.no_grad()
    def settle(self, engine: "Engine") -> None:
        own = {str(number): each for number, each in enumerate(engine.parameters) if self._is_own(each)}
        state = optimizer_state(engine.optimizer, engine.parameters)
        state = self._merged({name: value for name, value in state.items() if name.split(".")[0] in own})
        load_optimizer_state(engine.optimizer, engine.parameters, state, self.part)
        gradients = self._merged({number: parameter.grad for number, parameter in own.items()})
        for number, parameter in enumerate(engine.parameters):
            gradient = gradients[str(number)]
            parameter.grad = None if gradient is None else self.part(parameter, gradient)
        for model in (engine.model, engine.average.model):
            self.whole_model(model, model.state_dict())
        buffers = engine.statistics.of_model
        good = dict(enumerate(split_like(engine.statistics.good, buffers)))
        good = self._merged({number: good[number] for number in good if self._is_own(buffers[number])})
        if good:
            engine.statistics.good = torch.cat([good[number].flatten() for number in range(len(good))])

    @torch.no_grad()
    def whole_model(self, model: Detector, state: Mapping[str, Tensor]) -> Detector:
        whose = self.model.state_dict(keep_vars=True)
        merged = self._merged({name: value for name, value in state.items() if self._is_own(whose[name])})
        model.load_state_dict(merged)
        return model

    def _is_own(self, tensor: Tensor) -> bool:
        """Does a parameter or buffer of the model belong to this process's stage? What no stage has is of rank 0."""
        return self._owner.get(tensor, 0) == self.team.rank

    def _merged(self, own: Mapping[Any, Any]) -> dict[Any, Any]:
        """What all processes give by name, tensors or other values; only one of them gives a name."""
        facts = {
            name: (value.shape, value.dtype) if isinstance(value, Tensor) else value for name, value in own.items()
        }
        merged: dict[Any, Any] = {}
        for rank, given in enumerate(self.team.broadcast(self.team.gather(facts))):
            merged |= given
            shapes: dict[torch.dtype, dict[Any, torch.Size]] = {}
            for name, fact in given.items():
                if isinstance(fact, tuple):
                    shapes.setdefault(fact[1], {})[name] = fact[0]
            for dtype, of_names in shapes.items():  # all tensors of a process at once
                sizes = [shape.numel() for shape in of_names.values()]
                flat = torch.empty(sum(sizes), dtype=dtype, device=self.device)
                if rank == self.team.rank:
                    torch.cat([own[name].flatten().to(self.device) for name in of_names], out=flat)
                dist.broadcast(flat, src=rank)
                parts = zip(of_names.items(), flat.split(sizes), strict=True)
                merged |= {name: part.view(shape) for (name, shape), part in parts}
        return merged


class _Computing(nn.Module):
    """A stage as torch calls it. Tensors between stages are contiguous in both directions; else the peer would hang.

    So a channels_last map (B, C, h, w) is exchanged as (B, h, w, C).
    """

    def __init__(self, pipeline: Pipeline, stage: Stage, precision: Precision) -> None:
        super().__init__()
        self.module, self.precision, self.pipeline = stage.module, precision, pipeline
        self.form = tree_flatten(stage.takes)[1]

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.pipeline.is_first:
            values = (images_to_float(tensors[0]),)
        else:
            values = tree_unflatten([_swapped(tensor, 0, 3, 1, 2) for tensor in tensors], self.form)
        with self.precision.autocast():
            results = self.module(*values)
        if self.pipeline.is_last:
            return self.pipeline.loss.add(results)
        sent = [_swapped(tensor, 0, 2, 3, 1).contiguous() for tensor in tree_leaves(results)]
        # Frozen layers give what has no gradient; torch expects one of all that it has sent.
        return tuple(tensor if tensor.requires_grad else tensor.requires_grad_() for tensor in sent)


class _Loss:
    """The loss of a batch on the last stage, where all micro-batches go forward before the first goes backward."""

    def __init__(self, engine: "Engine", batch: Batch, count: int) -> None:
        self.engine, self.scale = engine, engine.scaler.scale(torch.ones((), device=engine.device)) * len(batch.images)
        # by micro-batch: its own boxes and labels, and where `measures.label_ratio` is due those of other images
        targets = [(batch.boxes, batch.labels)]
        if measures.label_ratio_is_due(engine, batch):
            targets.append((batch.boxes.roll(1, 0), batch.labels.roll(1, 0)))
        cut = [zip(boxes.chunk(count), labels.chunk(count), strict=True) for boxes, labels in targets]
        self.targets = list(zip(*cut, strict=True))
        self.found: list[Tensor] = []  # of each micro-batch: sums and norms (targets, 2, K)
        self.lengths: list[int] = []  # how many of the K are of each part of the loss

    def add(self, maps: list[Tensor]) -> Tensor:
        """The sum that the next micro-batch goes backward from (1,), once all norms are known."""
        own, *others = self.targets[len(self.found)]
        found = [self._of(maps, *own), *(self._of([each.detach() for each in maps], *other) for other in others)]
        self.found.append(torch.stack([each.detach() for each in found]))
        gains = self.engine.gains.values()
        weights = torch.cat([maps[0].new_full((n,), gain) for n, gain in zip(self.lengths, gains, strict=True)])
        sums = found[0][0]
        sums.register_hook(lambda gradient: gradient / self._totals()[0, 1])
        return (weights * sums).sum(dim=0, keepdim=True) * self.scale

    def results(self) -> tuple[Tensor, Tensor | None]:
        """The losses of the batch (parts,), and the label ratio () if it is due."""
        gains = self.engine.gains.values()
        columns = [(sums / norms).split(self.lengths) for sums, norms in self._totals()]
        losses = [
            torch.stack([gain * part.sum() for gain, part in zip(gains, parts, strict=True)]) for parts in columns
        ]
        return losses[0], losses[0].sum() / losses[1].sum() if len(losses) > 1 else None

    def _of(self, maps: list[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Sums and norms (2, K)."""
        parts = self.engine.criterion(maps, boxes, labels)
        self.lengths = [len(parts[name][0]) for name in self.engine.gains]
        return torch.stack([torch.cat([parts[name][each] for name in self.engine.gains]) for each in (0, 1)])

    def _totals(self) -> Tensor:
        """Sums and norms of the batch (targets, 2, K)."""
        sums, norms = torch.stack(self.found).sum(dim=0).unbind(1)
        return torch.stack((sums, norms.clamp(min=1)), dim=1)


def _shape(config: TrainConfig, stages: int, channels: int) -> tuple[int, int, int, int]:
    """Of a micro-batch. Two a stage keep stages busy for most of the time; more would leave BatchNorm fewer images."""
    count = 2 * stages if config.batch % (2 * stages) == 0 else stages
    return config.batch // count, channels, *shape_of(config.imgsz)


def _swapped(tensor: Tensor, *order: int) -> Tensor:
    return tensor.permute(order) if tensor.ndim == 4 else tensor


def _examples(values: Any) -> tuple[Tensor, ...]:
    """What `_Computing` takes or gives for `values`, without numbers."""
    leaves = [_swapped(each, 0, 2, 3, 1) for each in tree_leaves(values)]
    return tuple(torch.empty(each.shape, dtype=each.dtype, device="meta", requires_grad=True) for each in leaves)
