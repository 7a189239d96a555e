"""What a training step costs, traced without the device: the step of `training/engine` on tensors without content.

The model is built, its loss, optimizer and average are made as `training/begin.py` makes them, and one step is made:
the second one, from which on the optimizer has its state. All sizes are those of the true step, nothing is computed.
What is alive is known after each operation. In the number of images it is a line, so the traces of two numbers give the
peak of all others.
"""

import copy
import dataclasses
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from yoloyard.common import device
from yoloyard.config.settings import TrainConfig
from yoloyard.cpu import early_gradients
from yoloyard.cpu.points_in_boxes import use_points_in_boxes
from yoloyard.cpu.silu import join_batch_norm_and_silu
from yoloyard.losses import Criterion, build_criterion
from yoloyard.losses.task_aligned import TaskAlignedLoss
from yoloyard.models.detector import Detector
from yoloyard.planning.figures import Precision, StepCost
from yoloyard.training.engine.checkpointing import checkpoint_activations
from yoloyard.training.engine.engine import Engine
from yoloyard.training.engine.multi_scale import LARGEST
from yoloyard.training.setup.batch_size import noise
from yoloyard.training.setup.starting_point import build_detector, freeze, set_training_mode, starting_point
from yoloyard.training.strategies.alone import Strategy

BOXES = 64  # that an image is padded to, where no data says how many
DTYPES = {"float32": torch.float32, "amp": torch.bfloat16}  # float16 takes as many bytes
TRACED = (2, 4)  # images, from which all other numbers follow
# Of a device besides what a step's tensors take. Modelled; see docs/choices.md.
CONTEXT_BYTES = 500e6
WORKSPACE_BYTES = 300e6
FRAGMENTATION = 1.08

aten = torch.ops.aten
# They move nothing, and no device hears of them.
SILENT = {
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten._unsafe_view,
    aten.detach, aten.lift_fresh, aten._reshape_alias, aten.alias,
}  # fmt: skip


class Counter(TorchDispatchMode):
    """While entered, counts what operations allocate, move and compute. Views and in-place operations allocate nothing.

    `alive`: bytes of the storages that are alive, after each operation that has made one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0  # bytes that are alive
        self.pauses = False
        self._storages: dict[int, weakref.ref[Any]] = {}
        self.begin()

    def begin(self) -> None:
        """Count from here; what is alive stays known."""
        self.start, self.alive = self.now, [self.now]
        self.flops = self.bytes_moved = self.operators = 0
        self._last: Any = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace != "prim" and not self.pauses:
            outputs = list(_tensors([out]))
            if sum(map(self._see, outputs)):
                self.alive.append(self.now)
            packet = func.overloadpacket
            if not func.is_view and packet not in SILENT:
                self.bytes_moved += sum(map(_size, _tensors([args, (kwargs or {}).values()]))) + sum(
                    map(_size, outputs)
                )
                # one operation for each tensor of a list, which an accelerator makes for all of them at once
                self.operators += packet is not self._last
                self._last = packet
                if packet in flop_registry:
                    self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        return out

    def _see(self, tensor: Tensor) -> bool:
        """Is its storage a new one? Its bytes count until it is gone."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return False
        self.now += size
        self._storages[key] = weakref.ref(storage, partial(self._gone, key, size))
        return True

    def _gone(self, key: int, size: int, _: Any) -> None:
        self.now -= size
        del self._storages[key]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple | type({}.values())):
            yield from _tensors(value)


def _size(tensor: Tensor) -> int:
    """Bytes, those of an expanded tensor once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class _Alone(Strategy):
    """One process with one device, whose model has no content."""

    def copy(self) -> Detector:
        return _like(self.model)


def _like(detector: Detector) -> Detector:
    """A copy in memory of its own, with any content."""
    tensors: dict[int, Tensor] = {}
    for value in (*detector.parameters(), *detector.buffers()):
        made = torch.empty_like(value)
        tensors[id(value)] = nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made
    return copy.deepcopy(detector, tensors)


class _Numbers(torch.autograd.Function):
    """A loss that looks at numbers, which the maps without content don't have: it gets random ones."""

    @staticmethod
    def forward(ctx: Any, criterion: Criterion, boxes: Tensor, labels: Tensor, counter: Counter, *maps: Tensor) -> Any:
        counter.pauses = True
        with unset_fake_temporarily():
            true = [torch.rand(level.shape).to(level.dtype, memory_format=torch.channels_last) for level in maps]
            for level in true:
                level.requires_grad_()
        counter.pauses = False
        with unset_fake_temporarily(), torch.enable_grad():
            parts = criterion(true, boxes, labels)
            ctx.sum = torch.cat([total for total, _ in parts.values()]).sum()
        ctx.true = true
        return tuple(torch.empty(value.shape) for part in parts.values() for value in part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        with unset_fake_temporarily():
            found = torch.autograd.grad(ctx.sum, ctx.true)
        return None, None, None, None, *(torch.empty(each.shape, dtype=each.dtype) for each in found)


def build_model(config: TrainConfig, num_classes: int) -> Detector:
    """The network that a run with these settings trains, on the CPU. Raises UsageError or UserError."""
    start = starting_point({"model": config.model, "weights": config.weights})
    detector = build_detector(start.model, start.custom, start.arguments(num_classes))
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
    detector: Detector | None = None,
) -> StepCost:
    """The cost of one step of a device with `images` images, each padded to `boxes` boxes. A step makes an update.

    Gradients of earlier images are there already, if an update of `config` has more images. `on_cpu` takes the code
    that a CPU runs, else it is that of an accelerator. `detector` is what `build_model` gave, if it is there already.
    Raises UserError for a custom model that reads numbers.
    """
    detector = detector or build_model(config, num_classes)
    return _traced(detector, config, images, precision, recomputed, on_cpu, boxes)[0]


def _traced(
    detector: Detector,
    config: TrainConfig,
    images: int,
    precision: Precision,
    recomputed: bool,
    on_cpu: bool,
    boxes: int,
) -> tuple[StepCost, list[int]]:
    """The cost, and the bytes that are alive after each operation."""
    # a GPU has room for all pairs of a box and a point; a CPU reads its labels
    whole = max(config.batch, config.optimization.nbs)
    optimizer = "AdamW" if config.optimization.optimizer == "auto" else config.optimization.optimizer  # keeps the most
    waits = round(whole / images) > 1
    optimization = dataclasses.replace(
        config.optimization, nbs=(1 + waits) * images, optimizer=optimizer, warmup_epochs=0
    )
    own = dataclasses.replace(config, batch=images, multi_scale=False, optimization=optimization)
    side = detector.input_size(int(config.imgsz * (LARGEST if config.multi_scale else 1)))
    counter = Counter()
    batch = noise(images, side, boxes, detector.num_classes)
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        model = _like(detector)
        weights = counter.now
        set_training_mode(model)
        criterion, gains = build_criterion(model.head, own, None if on_cpu else 10**15)
        if on_cpu:
            join_batch_norm_and_silu(model)
        if recomputed:
            checkpoint_activations(model)
        if on_cpu and type(criterion) is TaskAlignedLoss:
            criterion = _on_numbers(use_points_in_boxes(criterion), batch.boxes, batch.labels, counter)
        arithmetic = device.Precision("cpu", DTYPES[precision])
        saved = [0, 0]

        def noted(*arguments: Any) -> Any:
            parts = criterion(*arguments)
            saved[1] = counter.now
            return parts

        @contextmanager
        def around_step() -> Iterator[None]:
            with early_gradients(model) if on_cpu else nullcontext():
                saved[0] = counter.now
                yield

        before = counter.now
        engine = Engine(model, noted, gains, arithmetic, own, 10**6, _Alone(model), around_step)
        average = counter.now - before
        for parameter in engine.parameters:
            parameter.grad = torch.empty_like(parameter)
        gradients = sum(map(_size, engine.parameters))
        engine.update()
        engine.number, engine.last_update = 1, -1 if waits else 0
        state = [value for values in engine.optimizer.state.values() for value in values.values()]
        if waits:
            for parameter in engine.parameters:
                parameter.grad = torch.empty_like(parameter)
        batch = dataclasses.replace(
            batch, images=torch.empty_like(batch.images), boxes=batch.boxes + 0, labels=batch.labels + 0
        )
        counter.begin()
        engine.step(batch)
    cost = StepCost(
        images=images,
        precision=precision,
        recomputed=recomputed,
        parameters=sum(map(torch.numel, detector.parameters())),
        flops=counter.flops,
        bytes_moved=counter.bytes_moved,
        operators=counter.operators,
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=sum(map(_size, _tensors(state))),
        average_bytes=average,
        activations_bytes=saved[1] - saved[0],
        peak_bytes=max(counter.alive),
        held_bytes=counter.start,
    )
    return cost, counter.alive


def _on_numbers(criterion: Any, boxes: Tensor, labels: Tensor, counter: Counter) -> Criterion:
    """`criterion` with numbers of its own; `boxes` and `labels` are those of the batch, with their numbers."""

    def with_numbers(maps: list[Tensor], *_: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        flat = _Numbers.apply(criterion, boxes, labels, counter, *maps)
        return dict(zip(("box", "cls", "dfl"), zip(flat[::2], flat[1::2], strict=True), strict=True))

    return with_numbers
