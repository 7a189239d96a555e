"""The model's stages over several processes, for images that fit no single GPU: GPipe by torch.distributed.pipelining.

Each process has the whole model, its average and its optimizer, since weights are small. It computes the maps of its
own stage alone, which are large, and updates that stage alone. The rest comes from the other processes before a
validation and a checkpoint. Source: Huang et al., "GPipe" (2019).
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from yoloyard.common.device import Precision
from yoloyard.common.errors import UsageError, UserError, memory_line
from yoloyard.common.structures import Batch, images_to_float
from yoloyard.config.settings import AUTO, TrainConfig
from yoloyard.models.detector import Detector
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.engine import measures
from yoloyard.training.engine.ema import split_like
from yoloyard.training.engine.optimizers import laid_out_as, load_optimizer_state, optimizer_state
from yoloyard.training.strategies.alone import Strategy
from yoloyard.training.strategies.cutting import Stage, cut

if TYPE_CHECKING:
    from yoloyard.training.engine.engine import Engine

log = logging.getLogger(__name__)

MICRO_BATCHES_PER_STAGE = 2  # with more of them stages wait less for each other, but BatchNorm sees fewer images


def check_pipeline(
    config: TrainConfig, given: Mapping[str, Any], detector: Detector, precision: Precision, processes: int
) -> None:
    """Raise UsageError where what a run wants does not go with `--strategy pipeline`. `detector` lies on the CPU."""
    if processes == 1:
        raise UsageError(
            "--strategy pipeline has a process for each stage of the network: say how many, by --processes"
        )
    flags = ("compile", "sync_bn", "multi_scale", "rect")
    refused = [f"--{name.replace('_', '-')}" for name in flags if getattr(config, name)]
    refused += ["--batch auto"] * (given.get("batch") == AUTO)
    if refused:
        raise UsageError(f"--strategy pipeline does not go with {' and '.join(refused)}; leave one of them out")
    if precision.scaler().is_enabled():
        raise UsageError(f"--strategy pipeline has no loss scaling, which {precision.name} needs here: add --no-amp")
    side = detector.input_size(config.imgsz)
    images = config.batch // micro_batches(config.batch, processes)
    cut(detector, processes, (images, 3, side, side), Precision("cpu", torch.float32))


def micro_batches(batch: int, stages: int) -> int:
    """Into how many parts of equal size a batch is cut. Raises UsageError where it can't be."""
    most = MICRO_BATCHES_PER_STAGE * stages
    found = [number for number in range(stages, most + 1) if batch % number == 0]
    if not found:
        raise UsageError(
            f"--strategy pipeline can't cut a --batch of {batch} into {stages} to {most} micro-batches of equal size: "
            f"take a multiple of {stages}"
        )
    return found[-1]


class Pipeline(Strategy):
    """Process N computes stage N of the model, of one micro-batch after the other.

    Parameters and buffers become those of rank 0. Gradients are those of one process with the whole batch, where
    BatchNorm's statistics are fixed. Raises UsageError if the model or the batch can't be cut.
    """

    @property
    def share(self) -> tuple[int, int]:
        return 0, 1

    def __init__(self, config: TrainConfig, model: Detector, team: Team, precision: Precision) -> None:
        super().__init__(model, team)
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)
        self.device = next(model.parameters()).device
        self.micro_batches = micro_batches(config.batch, team.size)
        shape = (config.batch // self.micro_batches, 3, config.imgsz, config.imgsz)
        stages = cut(model, team.size, shape, precision)
        self._owner = {
            tensor: rank
            for rank, stage in enumerate(stages)
            for tensor in stage.module.state_dict(keep_vars=True).values()
        }
        self.is_first, self.is_last = team.is_rank_0, team.rank == team.size - 1
        takes, gives = (_examples(values) for values in (stages[team.rank].takes, stages[team.rank].gives))
        if self.is_first:
            takes = (torch.empty(shape, dtype=torch.uint8, device="meta"),)
        if self.is_last:
            gives = (torch.empty(1, device="meta", requires_grad=True),)
        # Without examples torch would send the shapes, by a forward and a loss of numbers that nobody has written.
        computing = _Computing(self, stages[team.rank], precision)
        stage = PipelineStage(computing, team.rank, team.size, self.device, takes, gives)
        self._schedule = ScheduleGPipe(stage, self.micro_batches, lambda loss, _: loss.sum(), scale_grads=False)
        cuts = ", ".join(f"{each.first} to {each.last} ({each.share:.0%} of the cost)" for each in stages)
        log.info(f"pipeline: the stages are {cuts}")
        log.info(
            f"pipeline: {self.micro_batches} micro-batches of {shape[0]} images each; "
            "BatchNorm in training sees one of them at a time"
        )

    def is_own(self, tensor: Tensor) -> bool:
        """Does a parameter or buffer of the model belong to this process's stage? What no stage uses is of rank 0."""
        return self._owner.get(tensor, 0) == self.team.rank

    def backward(self, engine: "Engine", batch: Batch) -> tuple[Tensor, Tensor | None]:
        for parameter in engine.parameters:
            if not self.is_own(parameter):
                parameter.grad = None  # of a checkpoint
        batch = batch.to(self.device)
        compares = measures.label_ratio_is_due(engine, batch)
        self._loss = loss = _Loss(engine, batch, self.micro_batches, compares)
        try:
            with engine.around_step():
                self._schedule.step(*[batch.images] * self.is_first, target=torch.zeros(self.micro_batches))
        except RuntimeError as error:
            cause = error.__cause__ or error  # torch wraps what the model raises
            if memory_line(cause):
                raise UserError(f"{memory_line(cause)}; or take more --processes, as more stages") from error
            raise cause from None
        losses = loss.losses() if self.is_last else torch.zeros(len(engine.gains), device=self.device)
        if not compares:
            return losses, None
        return losses, loss.label_ratio() * self.team.size if self.is_last else torch.zeros((), device=self.device)

    def loss_of(self, maps: list[Tensor]) -> Tensor:
        """What is backpropagated of the next micro-batch (1,), whose `maps` the last stage has computed."""
        return self._loss.add(maps)

    def length(self, tensors: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        own = [tensor for tensor, weight in zip(tensors, weights, strict=True) if self.is_own(weight)]
        norms = torch.stack([torch.zeros((), device=self.device), *torch._foreach_norm(own)])
        return self.team.all_reduce(norms.square().sum()).sqrt()

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        reached = [parameter for parameter in parameters if parameter.grad is not None]
        norm = self.length([parameter.grad for parameter in reached if parameter.grad is not None], reached)
        nn.utils.clip_grads_with_norm_(reached, limit, norm)
        return norm

    def in_all(self, names: list[str]) -> list[str]:
        of_all = self.team.gather(set(names))
        return [name for name in names if all(name in found for found in of_all)]

    @torch.no_grad()
    def settle(self, engine: "Engine") -> None:
        parameters, state = engine.parameters, optimizer_state(engine.optimizer)
        own = {str(number) for number, parameter in enumerate(parameters) if self.is_own(parameter)}
        load_optimizer_state(engine.optimizer, self._merged({k: v for k, v in state.items() if k.split(".")[0] in own}))
        gradients = self._merged({number: parameters[int(number)].grad for number in own})
        for number, parameter in enumerate(parameters):
            gradient = gradients[str(number)]
            parameter.grad = None if gradient is None else laid_out_as(parameter, gradient)
        engine.model.load_state_dict(self._merged(self._own(engine.model)))
        statistics = engine.statistics
        parts = zip(statistics.of_model, split_like(statistics.good, statistics.of_model), strict=True)
        good = self._merged({str(number): part for number, (each, part) in enumerate(parts) if self.is_own(each)})
        statistics.good = torch.cat([good[str(number)].flatten() for number in range(len(good))] or [statistics.good])

    @torch.no_grad()
    def settle_average(self, average: Detector) -> None:
        average.load_state_dict(self._merged(self._own(average)))

    def _own(self, model: Detector) -> dict[str, Tensor]:
        """What belongs to this process in the state of the model, or of one that is like it."""
        whose = self.model.state_dict(keep_vars=True)
        return {name: value for name, value in model.state_dict().items() if self.is_own(whose[name])}

    def _merged(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The values of all processes by name; each name is in one process alone. Values may be tensors."""
        facts = {
            name: (value.shape, value.dtype) if isinstance(value, Tensor) else value for name, value in own.items()
        }
        merged: dict[str, Any] = {}
        for rank, found in enumerate(self.team.broadcast(self.team.gather(facts))):
            for name, fact in found.items():
                merged[name] = fact
                if isinstance(fact, tuple):
                    shape, dtype = fact
                    is_here = rank == self.team.rank
                    value = (
                        own[name].to(self.device) if is_here else torch.empty(shape, dtype=dtype, device=self.device)
                    )
                    merged[name] = value.contiguous()  # as it lies in the memory of all
                    dist.broadcast(merged[name], src=rank)
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
            return self.pipeline.loss_of(results)
        sent = [_swapped(tensor, 0, 2, 3, 1).contiguous() for tensor in tree_leaves(results)]
        # Frozen layers give what has no gradient; torch expects one of all that it has sent.
        return tuple(tensor if tensor.requires_grad else tensor.requires_grad_() for tensor in sent)


class _Loss:
    """The loss of a batch on the last stage, whose micro-batches are all forward before the first goes backward."""

    def __init__(self, engine: "Engine", batch: Batch, count: int, compares: bool) -> None:
        self.engine, self.images = engine, len(batch.images)
        self.boxes, self.labels = batch.boxes.chunk(count), batch.labels.chunk(count)
        self.compares = compares
        self.other_boxes, self.other_labels = batch.boxes.roll(1, 0).chunk(count), batch.labels.roll(1, 0).chunk(count)
        # of each micro-batch sums and norms (2, K), where part P of the loss has `lengths[P]` of the K
        self.found: list[Tensor] = []
        self.others: list[Tensor] = []  # with the labels of other images
        self.lengths: list[int] = []

    def add(self, maps: list[Tensor]) -> Tensor:
        """The loss of the next micro-batch (1,); its gradient is divided by norms that are known when it is wanted."""
        number = len(self.found)
        sums, norms = self._of(maps, self.boxes[number], self.labels[number])
        self.found.append(torch.stack((sums.detach(), norms)))
        if self.compares:
            with torch.no_grad():
                self.others.append(torch.stack(self._of(maps, self.other_boxes[number], self.other_labels[number])))
        sums.register_hook(lambda gradient: gradient / self._total(self.found)[1])
        gains = torch.cat(
            [sums.new_full((n,), gain) for n, gain in zip(self.lengths, self.engine.gains.values(), strict=True)]
        )
        return (gains * sums).sum(dim=0, keepdim=True) * self.images

    def losses(self) -> Tensor:
        """Those of the batch (parts,)."""
        return self._losses(self.found)

    def label_ratio(self) -> Tensor:
        """As `measures.label_ratio`."""
        return self._losses(self.found).sum() / self._losses(self.others).sum()

    def _of(self, maps: list[Tensor], boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        parts = self.engine.criterion(maps, boxes, labels)
        self.lengths = [len(parts[name][0]) for name in self.engine.gains]
        sums, norms = (torch.cat([parts[name][each] for name in self.engine.gains]) for each in (0, 1))
        return sums, norms.detach()

    def _total(self, found: list[Tensor]) -> Tensor:
        sums, norms = torch.stack(found).sum(dim=0)
        return torch.stack((sums, norms.clamp(min=1)))

    def _losses(self, found: list[Tensor]) -> Tensor:
        sums, norms = self._total(found)
        parts = zip(self.engine.gains.values(), (sums / norms).split(self.lengths), strict=True)
        return torch.stack([gain * part.sum() for gain, part in parts])


def _swapped(tensor: Tensor, *order: int) -> Tensor:
    return tensor.permute(order) if tensor.ndim == 4 else tensor


def _examples(values: Any) -> tuple[Tensor, ...]:
    """What `_Computing` takes or gives for `values`, without numbers."""
    leaves = [_swapped(each, 0, 2, 3, 1) for each in tree_leaves(values)]
    return tuple(torch.empty(each.shape, dtype=each.dtype, device="meta", requires_grad=True) for each in leaves)
