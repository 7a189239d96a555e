"""What a training step costs, traced without the device: the step of `training/engine` on tensors without content.

Model, loss, optimizer and average are those that `training/begin.py` makes, and a step is made from which on all of
them are there: one that takes the most memory, since it also compares its loss with that of other labels. Shapes and
lifetimes are true, nothing is computed. What is alive after each operation is a line in the number of images, so the
traces of two numbers give the peak of any other. `--compile` and the strategies that cut a model are not followed.
"""

import copy
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import _disable_current_modes

from yoloyard.common import device
from yoloyard.common.errors import UserError, user_line
from yoloyard.common.structures import Batch
from yoloyard.config.settings import TrainConfig
from yoloyard.cpu import early_gradients
from yoloyard.cpu.points_in_boxes import use_points_in_boxes
from yoloyard.cpu.silu import join_batch_norm_and_silu
from yoloyard.losses import Criterion, build_criterion
from yoloyard.losses.task_aligned import task_aligned_parts
from yoloyard.models.detector import Detector
from yoloyard.planning.counter import Counter, size_of
from yoloyard.planning.figures import Precision, StepCost
from yoloyard.training.engine.checkpointing import checkpoint_activations
from yoloyard.training.engine.engine import Engine
from yoloyard.training.engine.measures import LABELS_PERIOD, Parts
from yoloyard.training.engine.multi_scale import largest_size
from yoloyard.training.setup.batch_size import noise
from yoloyard.training.setup.starting_point import build_detector, freeze, set_training_mode, starting_point
from yoloyard.training.strategies.alone import Strategy

BOXES = 64  # that an image is padded to, where no data says it
PRECISIONS: dict[Precision, torch.dtype] = {"float32": torch.float32, "amp": torch.bfloat16}
TRACED_IMAGES = (2, 4)  # any other number follows from these


@dataclass(frozen=True)
class StepTrace:
    """The cost of a step for any number of images, from two traces."""

    costs: tuple[StepCost, StepCost]
    alive: tuple[np.ndarray, np.ndarray]  # bytes after each operation that allocates, the same operations in both

    def cost(self, images: int) -> StepCost:
        """The cost of a step with so many images."""
        few, many = (vars(cost) for cost in self.costs)
        share = (images - few["images"]) / (many["images"] - few["images"])
        figures = {
            name: round(value + share * (many[name] - value))
            for name, value in few.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        return dataclasses.replace(self.costs[0], **figures | {"peak_bytes": self.peak(images)})

    def peak(self, images: int) -> int:
        """The most bytes that are alive in a step with so many images."""
        at_none, of_one = self._lines()
        return round(float((at_none + of_one * images).max()))

    def largest(self, memory: float) -> int:
        """The most images whose step fits into `memory` bytes; 0 if not even one does."""
        at_none, of_one = self._lines()
        grows = of_one > 0
        images = float(((memory - at_none[grows]) / of_one[grows]).min())
        return max(math.floor(images), 0) if at_none.max() <= memory else 0

    def _lines(self) -> tuple[np.ndarray, np.ndarray]:
        """Bytes that are alive after each operation without an image, and what each image adds."""
        few, many = (cost.images for cost in self.costs)
        of_one = (self.alive[1] - self.alive[0]) / (many - few)
        return self.alive[0] - few * of_one, of_one


def build_model(config: TrainConfig, num_classes: int, channels: int = 3) -> Detector:
    """The network that a run with these settings trains, on the CPU. Raises UsageError or UserError."""
    start = starting_point({"model": config.model, "weights": config.weights})
    detector = build_detector(start.model, start.custom, start.arguments(num_classes, config.end2end, channels))
    freeze(detector, config.freeze)
    return detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def trace_step(
    config: TrainConfig,
    num_classes: int,
    images: int,
    precision: Precision,
    recomputed: bool,
    on_cpu: bool = False,
    boxes: int = BOXES,
    channels: int = 3,
) -> StepCost:
    """The cost of one step of a device with `images` images, each padded to `boxes` boxes, and of its update.

    If the updates of `config` have more images, the gradients of earlier ones are there already. With an optimizer
    `auto` it is AdamW, which keeps the most. `on_cpu`: with the code that a CPU runs, else with an accelerator's.
    Raises UsageError or UserError, this also for a custom model that reads numbers.
    """
    waits = round(max(config.batch, config.optimization.nbs) / images) > 1
    traced = _Traced(build_model(config, num_classes, channels), config, on_cpu, boxes, waits)
    if recomputed:
        traced.recompute()
    return traced.step(images, precision)[0]


def trace_steps(
    config: TrainConfig,
    num_classes: int,
    precisions: Sequence[Precision] = ("float32", "amp"),
    recomputed: Sequence[bool] = (False, True),
    on_cpu: bool = False,
    boxes: int = BOXES,
    channels: int = 3,
) -> list[StepTrace]:
    """What `trace_step` gives for any number of images, of each precision, without and with recomputed activations.

    Gradients of earlier batches count, as if all images of an update did not fit at once.
    """
    traced, traces = _Traced(build_model(config, num_classes, channels), config, on_cpu, boxes, waits=True), []
    for each in sorted(recomputed):
        if each:
            traced.recompute()
        for precision in precisions:
            few, many = (traced.step(images, precision) for images in TRACED_IMAGES)
            if len(few[1]) != len(many[1]):  # the network does something else for other numbers of images
                few, many = ((cost, [cost.peak_bytes]) for cost, _ in (few, many))
            traces.append(StepTrace((few[0], many[0]), (np.array(few[1]), np.array(many[1]))))
    return traces


class _Traced:
    """An engine without content, as it is after its first update; for the arguments see `trace_step`.

    `waits`: gradients of earlier batches are there before each step.
    """

    def __init__(self, detector: Detector, config: TrainConfig, on_cpu: bool, boxes: int, waits: bool) -> None:
        self.detector, self.on_cpu, self.boxes, self.waits = detector, on_cpu, boxes, waits
        self.imgsz = largest_size(config, max(detector.strides))
        optimizer = "AdamW" if config.optimization.optimizer == "auto" else config.optimization.optimizer
        optimization = dataclasses.replace(config.optimization, optimizer=optimizer, nbs=1 + waits, warmup_epochs=0)
        config = dataclasses.replace(config, batch=1, multi_scale=False, optimization=optimization)
        self.counter, self.mode = Counter(), FakeTensorMode(allow_non_fake_inputs=True)
        self.recomputed = self.compared = False  # compared: the loss of the labels is there, that of others comes next
        with _explained(), self.mode, self.counter:
            self.model = _like(detector)
            set_training_mode(self.model)
            # An accelerator has room for all pairs of a box and a point.
            self.criterion, gains = build_criterion(self.model.head, config, None if on_cpu else 10**15)
            if on_cpu:
                join_batch_norm_and_silu(self.model)
            if callable(detector.head.criterion) or (on_cpu and task_aligned_parts(self.criterion)):
                self.criterion = self._on_numbers(config)
            strategy, float32 = _Alone(self.model), device.Precision("cpu", torch.float32)
            rest = config, 10**6, strategy, self._around_step
            self.engine = Engine(self.model, self._losses, gains, float32, *rest)
            self.engine.last_update -= waits
            self.engine.step(self._batch(TRACED_IMAGES[0]))  # from here on the optimizer has its state
            self._give_gradients(True)
            self.engine.number, self.engine.last_update = self.measures + 1, self.measures - 1 - waits
            self.counter.begin()
            self.engine.update()
            self.update = self.counter.work, self.counter.alive

    def recompute(self) -> None:
        """From now on steps compute activations again."""
        checkpoint_activations(self.model)
        self.recomputed = True

    def step(self, images: int, precision: Precision) -> tuple[StepCost, list[int]]:
        """The cost of a step with its update, and the bytes that are alive after each operation that allocates."""
        counter, engine = self.counter, self.engine
        engine.precision = device.Precision("cpu", PRECISIONS[precision])
        with _explained(), self.mode, counter:
            self._give_gradients(self.waits)
            engine.number, engine.last_update = self.measures, self.measures - 1 - self.waits
            batch, self.compared = self._batch(images), False
            counter.begin()
            engine.backward(batch)
        work, alive = self.update
        flops, bytes_moved, operators = map(sum, zip(counter.work, work, strict=True))
        alive = counter.alive + alive
        cost = StepCost(
            images=images,
            precision=precision,
            recomputed=self.recomputed,
            parameters=sum(map(torch.numel, self.detector.parameters())),
            flops=flops,
            bytes_moved=bytes_moved,
            operators=operators,
            weights_bytes=_bytes((*self.model.parameters(), *self.model.buffers())),
            gradients_bytes=_bytes(engine.parameters),
            optimizer_bytes=_bytes(value for each in engine.optimizer.state.values() for value in each.values()),
            average_bytes=_bytes(engine.average.values.values()),
            activations_bytes=self.saved_bytes,
            held_bytes=counter.start,
            peak_bytes=max(alive),
        )
        return cost, alive

    @property
    def measures(self) -> int:
        """The number of a batch at which a step measures itself."""
        return LABELS_PERIOD * (1 + self.waits)

    def _batch(self, images: int) -> Batch:
        """A batch without content."""
        with _disable_current_modes():
            self.batch = noise(images, self.imgsz, self.boxes, self.detector.num_classes, self.detector.image_channels)
        pixels, boxes, labels = map(torch.empty_like, (self.batch.images, self.batch.boxes, self.batch.labels))
        return dataclasses.replace(self.batch, images=pixels, boxes=boxes, labels=labels)

    def _give_gradients(self, there: bool) -> None:
        for parameter in self.engine.parameters:
            parameter.grad = torch.empty_like(parameter, requires_grad=False) if there else None

    @contextmanager
    def _around_step(self) -> Iterator[None]:
        with early_gradients(self.model) if self.on_cpu else nullcontext():
            self.saved_bytes = -self.counter.now
            yield

    def _losses(self, maps: list[Tensor], boxes: Tensor, labels: Tensor) -> Parts:
        """The parts of the loss. Few steps ask for those of other labels; they count as memory alone."""
        if self.compared:
            with self.counter.memory_alone():
                return self.criterion(maps, boxes, labels)
        parts = self.criterion(maps, boxes, labels)
        self.saved_bytes += self.counter.now
        self.compared = True
        return parts

    def _on_numbers(self, config: TrainConfig) -> Criterion:
        """The loss of the detector with numbers: it may look at them."""
        with _disable_current_modes():
            criterion, _ = build_criterion(self.detector.head, config)
            if self.on_cpu:
                use_points_in_boxes(criterion)

        def with_numbers(maps: list[Tensor], *_: Tensor) -> Parts:
            names: list[str] = []
            flat = _OnNumbers.apply(criterion, self.batch, self.counter, names, *maps)
            return dict(zip(names, zip(flat[::2], flat[1::2], strict=True), strict=True))

        return with_numbers


class _OnNumbers(torch.autograd.Function):
    """A loss of numbers in the place of maps that have none."""

    @staticmethod
    def forward(ctx: Any, criterion: Criterion, batch: Batch, counter: Counter, names: list[str], *maps: Tensor) -> Any:
        with _disable_current_modes():
            levels = [torch.rand(level.shape).to(level.dtype, memory_format=torch.channels_last) for level in maps]
        for level in levels:
            counter.see(level.requires_grad_(), 0)  # in the place of memory that counts already
        with unset_fake_temporarily(), torch.enable_grad():
            parts = criterion(levels, batch.boxes, batch.labels)
            ctx.total = torch.cat([total for total, _ in parts.values()]).sum()
        ctx.levels = levels
        names.extend(parts)
        return tuple(torch.empty(value.shape) for part in parts.values() for value in part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        with unset_fake_temporarily():
            found = torch.autograd.grad(ctx.total, ctx.levels)
        formats = [(level.shape, level.stride(), level.dtype) for level in found]
        del found, ctx.total
        return None, None, None, None, *(torch.empty_strided(*each[:2], dtype=each[2]) for each in formats)


class _Alone(Strategy):
    """One process with one device, whose model has no content."""

    def copy(self) -> Detector:
        return _like(self.model)


def _bytes(values: Iterable[Any]) -> int:
    return sum(size_of(value) for value in values if isinstance(value, Tensor))


def _like(detector: Detector) -> Detector:
    """A copy with memory of its own, of any content."""
    tensors: dict[int, Tensor] = {}
    for value in (*detector.parameters(), *detector.buffers()):
        made = torch.empty_like(value, requires_grad=False)
        tensors[id(value)] = nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made
    with _disable_current_modes():  # what else a module has is copied with its content
        return copy.deepcopy(detector, tensors)


@contextmanager
def _explained() -> Iterator[None]:
    """Name the line of a user file that fails on tensors without content. Raises UserError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not (line := user_line(error)):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{line}: a step can't be planned here, where tensors have shapes but no numbers; let this line ask for no "
            f"number of a tensor ({type(error).__name__}: {reason})"
        ) from error
