"""The training step: no wait for the device, a bad step leaves no trace, the gradient of several processes."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from memory import SavedBytes
from on_device import build, everything
from yoloyard import cpu
from yoloyard.common.device import Precision
from yoloyard.common.structures import Batch
from yoloyard.config.settings import OptimizerConfig, TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.models.detector import Detector
from yoloyard.models.heads import end_to_end
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.engine import optimizers
from yoloyard.training.engine.ema import ExponentialMovingAverage
from yoloyard.training.engine.engine import Engine
from yoloyard.training.engine.optimizers import build_optimizer
from yoloyard.training.state.checkpoint import Progress, read_header, restore, snapshot_of, write
from yoloyard.training.strategies import alone
from yoloyard.training.strategies.alone import Strategy

FLOAT32 = Precision("cpu", torch.float32)
NETWORKS = ("yolo11n", "yolo12n", "yolov5n", "yolov5n6", "tiny both")


def some_batch(images: int = 2, size: int = 64, device: str = "cpu", seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([[4.0, 6, 40, 50], [20, 10, 60, 30]]).repeat(images, 1, 1)
    labels = torch.tensor([[0, 1]]).repeat(images, 1)
    return Batch(
        pixels.to(device=device, memory_format=torch.channels_last),
        boxes.to(device),
        labels.to(device),
        torch.zeros(images, 2, dtype=torch.bool, device=device),
        list(range(images)),
        [None] * images,
    )


class Stage:
    """A small detector with all that a step needs."""

    def __init__(
        self,
        optimizer: str = "SGD",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        model: str = "tiny",
    ):
        torch.manual_seed(0)
        with torch.device(device):
            self.detector: Detector = build(model)
        optimization = OptimizerConfig(optimizer=optimizer, lr0=0.01, momentum=0.9, nbs=2, warmup_epochs=0)
        config = TrainConfig(imgsz=64, batch=2, optimization=optimization)
        self.precision = Precision("cpu", dtype)
        criterion, gains = build_criterion(self.detector.head, config)
        around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        if device == "cpu":  # but for the points in boxes, which are read
            around = cpu.prepare_training(self.detector, lambda *_: {}, self.precision, num_processes=1)
        self.engine = Engine(self.detector, criterion, gains, self.precision, config, 10**6, around_step=around)
        self.step = self.engine.step

    def backward(self, batch: Batch) -> Tensor:
        return self.engine.backward(batch)[0]


class Plain(dict[str, Any]):
    """The table of optimizers without their fused forms, which don't exist on `meta`; as if they knew found_inf."""

    def __getitem__(self, name: str) -> Any:
        def build(groups: list[dict[str, Any]], config: OptimizerConfig) -> Any:
            made: Any = torch.optim.AdamW(groups, lr=config.lr0)
            if name == "SGD":
                made = torch.optim.SGD(groups, lr=config.lr0, momentum=config.momentum, nesterov=True)
            step = made.step

            def step_without() -> None:
                made.found_inf = None
                step()

            made._step_supports_amp_scaling, made.step = True, step_without
            return made

        return build


@pytest.mark.parametrize(("model", "optimizer"), list(zip(NETWORKS, cycle(["SGD", "AdamW"]), strict=False)))
def test_a_step_on_the_meta_device_waits_for_nothing(
    model: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On `meta`, `.item()`, boolean masks, `.cpu()` and `.tolist()` raise."""
    monkeypatch.setattr(optimizers, "OPTIMIZERS", Plain())
    stage = Stage(optimizer, device="meta", model=model)
    report = stage.step(some_batch(device="meta"))
    assert report.gradient_norm.is_meta
    assert stage.engine.average.updates.is_meta


def like(module: torch.nn.Module) -> torch.nn.Module:
    """A deep copy of a module whose tensors have no content, which torch refuses to copy."""
    made: dict[int, Any] = {id(value): torch.empty_like(value) for value in module.buffers()}
    for value in module.parameters():
        made[id(value)] = torch.nn.Parameter(torch.empty_like(value), value.requires_grad)
    return copy.deepcopy(module, made)


@pytest.mark.parametrize(
    ("model", "optimizer", "dtype"),
    list(zip(NETWORKS, cycle(["SGD", "AdamW", "MuSGD"]), cycle([torch.float16, torch.bfloat16]), strict=False)),
)
def test_a_step_with_autocast_scaler_and_fused_optimizer_waits_for_nothing(
    model: str, optimizer: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    for module in (alone, end_to_end):
        monkeypatch.setattr(module, "copy", SimpleNamespace(deepcopy=like))
    with FakeTensorMode():
        stage = Stage(optimizer, dtype=dtype, model=model)
        report = stage.step(some_batch())
    assert isinstance(report.gradient_norm, FakeTensor)


@contextlib.contextmanager
def poisoned(detector: Detector, value: float) -> Iterator[None]:
    """The first convolution gives a value that is not finite, so that loss and BatchNorm are corrupt."""

    def spoil(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output * value

    handle = next(module for module in detector.modules() if isinstance(module, torch.nn.Conv2d)).register_forward_hook(
        spoil
    )
    yield
    handle.remove()


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "MuSGD"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("good_steps_before", [0, 2])
def test_a_bad_step_leaves_no_trace(optimizer: str, value: float, good_steps_before: int) -> None:
    stage, twin = Stage(optimizer), Stage(optimizer)
    for seed in range(good_steps_before):
        stage.step(some_batch(seed=seed))
        twin.step(some_batch(seed=seed))
    before = everything(stage.engine)
    with poisoned(stage.detector, value):
        report = stage.step(some_batch(seed=7))
    assert report.found_inf == 1
    after = everything(stage.engine)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    # And what follows is as if it had never been.
    stage.step(some_batch(seed=8))
    twin.step(some_batch(seed=8))
    after = everything(stage.engine)
    for name, tensor in everything(twin.engine).items():
        assert torch.equal(after[name], tensor), name


def test_a_bad_batch_among_accumulated_ones_spoils_only_its_own_update() -> None:
    stage = Stage()
    stage.step(some_batch(seed=1))
    before = everything(stage.engine)
    stage.backward(some_batch(seed=2))
    with poisoned(stage.detector, float("nan")):
        stage.backward(some_batch(seed=3))
    report = stage.step(some_batch(seed=4))
    assert report.found_inf == 1
    after = everything(stage.engine)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert stage.step(some_batch(seed=5)).found_inf == 0


@pytest.mark.parametrize("optimizer", ["AdamW", "MuSGD"])
def test_good_steps_lower_the_loss_and_move_the_average(optimizer: str) -> None:
    stage = Stage(optimizer)
    batch = some_batch()
    losses = []
    for _ in range(16):
        losses.append(stage.backward(batch).sum().item())
        stage.engine.update()
    assert losses[-1] < 0.7 * losses[0]
    assert stage.engine.average.updates == 16


def test_the_average_follows_the_published_ramp() -> None:
    stage = Stage()
    average = ExponentialMovingAverage(Strategy(stage.detector), 2000)
    name = "head.box_branches.0.2.bias"
    start = stage.detector.state_dict()[name].clone()
    with torch.no_grad():
        for parameter in stage.detector.parameters():
            parameter.add_(1)
    average.update(torch.zeros(()))
    decay = 0.9999 * (1 - torch.exp(torch.tensor(-1 / 2000)))
    expected = decay * start + (1 - decay) * (start + 1)
    assert torch.allclose(average.model.state_dict()[name], expected)


def test_a_layer_that_stands_in_two_places_is_averaged_and_updated_once() -> None:
    stage = Stage()
    branches = stage.detector.get_submodule("head.class_branches")
    branches[1].add_module("2", branches[0].get_submodule("2"))  # type: ignore[index]
    average = ExponentialMovingAverage(Strategy(stage.detector), 1)
    first, second = "head.class_branches.0.2.bias", "head.class_branches.1.2.bias"
    start = stage.detector.state_dict()[first].clone()
    with torch.no_grad():
        stage.detector.get_parameter(first).add_(1)
    average.update(torch.zeros(()))
    decay = 0.9999 * (1 - torch.exp(torch.tensor(-1.0)))
    for name in (first, second):
        assert torch.allclose(average.model.state_dict()[name], decay * start + (1 - decay) * (start + 1))
    optimizer = build_optimizer(stage.detector, OptimizerConfig(optimizer="SGD"), decay=0)
    parameters = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(parameters) == len(set(parameters))


@pytest.mark.parametrize("model", ["yolo11n", "yolov5n", "tiny both"])
def test_the_norm_of_all_processes_divides_each_ones_loss(model: str) -> None:
    """Two processes with half a batch each, their gradients averaged, have the gradient of one with the whole."""
    whole, batch = Stage(model=model), some_batch(images=4)
    for module in whole.detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    halves = [copy.deepcopy(whole.detector) for _ in range(2)]
    whole.backward(batch)

    parts = []
    for half in range(2):
        rows = slice(2 * half, 2 * half + 2)
        parts.append(
            Batch(batch.images[rows], batch.boxes[rows], batch.labels[rows], batch.ignore[rows], [0, 1], [None] * 2)
        )
    parts[1].labels[:] = -1  # also where one process has no box
    batch.labels[2:] = -1
    whole.engine.optimizer.zero_grad()
    whole.backward(batch)

    norms = []
    with torch.no_grad():
        for half_model, part in zip(halves, parts, strict=True):
            sums = whole.engine.criterion(half_model(part.images.float() / 255), part.boxes, part.labels)
            norms.append(torch.cat([sums[name][1] for name in whole.engine.gains]))

    class OneOfTwo(Team):
        """A process of two, of which this one is run after the other."""

        def __init__(self) -> None:
            super().__init__()
            self.size, self.answers = 2, [norms[0] + norms[1]]

        def all_reduce(self, values: Tensor) -> Tensor:
            return self.answers.pop() if self.answers else values

    for half_model, part in zip(halves, parts, strict=True):
        engine = Engine(
            half_model,
            whole.engine.criterion,
            whole.engine.gains,
            FLOAT32,
            whole.engine.config,
            1,
            Strategy(half_model, OneOfTwo()),
        )
        engine.backward(part)
    pairs = zip(whole.detector.named_parameters(), halves[0].parameters(), halves[1].parameters(), strict=True)
    for (name, one), first, second in pairs:
        if one.grad is not None and first.grad is not None and second.grad is not None:
            mean = (first.grad + second.grad) / 2
            assert torch.allclose(mean, one.grad, rtol=1e-3, atol=1e-5 * float(one.grad.abs().max()) + 1e-7), name


def test_mixed_precision_saves_about_half_of_the_activations() -> None:
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        stage = Stage(dtype=dtype, model="yolo11n")
        images = some_batch(size=384).images.float() / 255  # large beside the weights' own bfloat16
        weights = [*stage.detector.parameters(), *stage.detector.buffers()]
        saved = SavedBytes(ignored=weights)
        with saved, stage.precision.autocast():
            stage.detector(images)
        sizes[dtype] = saved.bytes
    assert 0.4 < sizes[torch.bfloat16] / sizes[torch.float32] < 0.6


def test_gradients_lie_in_memory_before_the_maps_and_are_added_to() -> None:
    stage = Stage()
    places: list[list[int]] = []
    parameters = [parameter for parameter in stage.detector.parameters() if parameter.requires_grad]

    def look(*_: object) -> None:
        places.append([parameter.grad.data_ptr() for parameter in parameters if parameter.grad is not None])

    stage.detector.register_forward_pre_hook(look)
    stage.backward(some_batch())
    stage.backward(some_batch(seed=1))
    look()
    assert places[0] == places[1] == places[2]
    assert len(places[0]) == len(parameters)
    stage.engine.update()
    assert all(parameter.grad is None for parameter in parameters)  # a checkpoint has nothing of them to keep


def test_a_scaler_that_finds_its_scale_is_no_bad_step() -> None:
    """float16: the first scale is too large, the step is skipped with finite losses, and a lower scale works."""
    stage = Stage(dtype=torch.float16)
    stage.engine.scaler._init_scale = 2.0**24
    before = everything(stage.engine)
    report = stage.step(some_batch())
    assert report.send().read() == (True, True, False, False)
    after = everything(stage.engine)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for _ in range(40):
        report = stage.step(some_batch())
        if not report.found_inf:
            break
    assert report.send().read() == (False, True, False, False)
    assert stage.engine.scaler.get_scale() < 2.0**24


class Momentum(torch.optim.Optimizer):
    """An optimizer without a fused form, whose state begins with its first step."""

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["count"] = state.get("count", 0) + 1
                    kept = state.setdefault("kept", torch.zeros_like(parameter))
                    kept.mul_(0.9).add_(parameter.grad)
                    parameter.sub_(kept, alpha=group["lr"] / state["count"])


@pytest.mark.parametrize("good_steps_before", [0, 2])
def test_a_bad_step_leaves_no_trace_in_an_optimizer_without_a_fused_form(
    good_steps_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(optimizers.OPTIMIZERS, "Momentum", lambda groups, config: Momentum(groups, config.lr0))
    test_a_bad_step_leaves_no_trace("Momentum", float("nan"), good_steps_before)
    stage = Stage("Momentum")
    before = everything(stage.engine)
    stage.step(some_batch())
    assert any(not torch.equal(everything(stage.engine)[name], value) for name, value in before.items())


def test_an_optimizer_may_keep_plain_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optimizers.OPTIMIZERS, "Momentum", lambda groups, config: Momentum(groups, config.lr0))
    stage, other = Stage("Momentum"), Stage("Momentum")
    for seed in range(3):
        stage.step(some_batch(seed=seed))
    write(snapshot_of({}, stage.engine, Progress(), []), tmp_path / "last")
    restore(read_header(tmp_path / "last"), other.engine, Progress())
    for each in (stage, other):
        each.step(some_batch(seed=3))
    after = everything(other.engine)
    assert all(torch.equal(after[name], value) for name, value in everything(stage.engine).items())


@pytest.mark.parametrize("asked", [(False, False), (True, False), (False, True)])
def test_what_a_process_is_asked_is_heard_in_the_report_of_the_same_step(asked: tuple[bool, bool]) -> None:
    stage = Stage()
    stage.engine._asked = lambda: asked
    flags = stage.step(some_batch()).send().read()
    assert (flags.stop, flags.save) == asked
