"""`--strategy pipeline`: stages in several processes train as one process does."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from on_device import everything, some_batch
from processes import gradients_of, join_team, run_together
from tiny_network import Tiny
from yoloyard import cpu
from yoloyard.common.device import Precision
from yoloyard.common.errors import UsageError
from yoloyard.common.structures import Batch, images_to_float
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import OptimizerConfig, TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.models import registry
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.engine.checkpointing import checkpoint_activations
from yoloyard.training.engine.engine import Engine
from yoloyard.training.setup.settings import check_new
from yoloyard.training.setup.starting_point import freeze
from yoloyard.training.strategies import build_strategy

CPU = torch.device("cpu")
BATCH, SIDE = 8, 64
STEPS = 10
SGD = OptimizerConfig(optimizer="SGD", lr0=0.02, nbs=2 * BATCH, warmup_epochs=0)  # an update every second batch
ADAMW = dataclasses.replace(SGD, optimizer="AdamW", lr0=0.001)


def batch_of(number: int) -> Batch:
    """Images of different brightness with large boxes; every second one has no box."""
    batch = some_batch(BATCH, SIDE, boxes=12, seed=number)
    batch.images[:] = batch.images * torch.linspace(0.2, 1, BATCH)[:, None, None, None]
    batch.boxes[..., 2:] += (SIDE - batch.boxes[..., 2:]) / 2
    batch.boxes[::2], batch.labels[::2] = 0, -1
    return dataclasses.replace(batch, source_ids=(number,))


def engine_of(team: Team, model: str, optimization: OptimizerConfig, precision: Precision, live: bool) -> Engine:
    """An engine of this process; BatchNorm is in training if `live`, else its statistics are fixed."""
    torch.manual_seed(team.rank)  # weights are those of rank 0
    detector = Tiny(3) if model == "tiny" else registry.build(model, num_classes=3)
    detector.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    config = TrainConfig(batch=BATCH, imgsz=SIDE, strategy="pipeline", processes=team.size, optimization=optimization)
    if live:
        checkpoint_activations(detector)
    else:
        freeze_statistics(detector)
        freeze(detector, "2")
    criterion, gains = build_criterion(detector.head, config)
    around_step = cpu.prepare_training(detector, criterion, precision, team.size)
    strategy = build_strategy(config, detector, team, precision, may_leave_out=False)
    return Engine(detector, criterion, gains, precision, config, STEPS, strategy, around_step)


def freeze_statistics(detector: nn.Module) -> None:
    """Keep BatchNorm at the statistics of some images, so that signals and gradients are of a natural size."""
    layers = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = 1.0
    with torch.no_grad():
        detector(images_to_float(batch_of(100).images))
    for layer in layers:
        assert layer.running_var is not None
        layer.running_var += 0.5 * layer.running_var.mean()  # a channel that hardly varies would blow up what follows
        layer.eval()
    for name, parameter in detector.named_parameters():
        if "class_branches" in name and name.endswith("2.bias"):
            nn.init.constant_(parameter, -1.0)  # scores that make the norm of the loss matter


def train(team: Team, model: str, optimization: OptimizerConfig) -> dict[str, Any]:
    """What the first batch, then 10 batches, then one batch more and a settled state give."""
    engine = engine_of(team, model, optimization, Precision("cpu", torch.float32), live=False)
    before = {f"model.{name}": value.numpy().copy() for name, value in engine.model.state_dict().items()}
    losses, _ = engine.backward(batch_of(0))
    own, label_ratio = gradients_of(engine.model), float(engine._label_ratio)
    engine.optimizer.zero_grad()
    reports = [engine.step(batch_of(number)).send() for number in range(STEPS + 1)]
    found = {"losses": losses.numpy(), "label ratio": label_ratio, "flags": [each.read() for each in reports]}
    figures = [each.figures() for each in reports]
    found |= {"norms": [each.gradient_norm for each in figures], "updates": [each.update_ratio for each in figures]}
    engine.settle()
    parts = engine.state_dict()
    state = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    arrays = {name: value.detach().numpy().copy() for name, value in state.items() if isinstance(value, torch.Tensor)}
    return found | {"own": own, "before": before, "state": arrays}


def step_with_live_statistics(team: Team, dtype: torch.dtype) -> dict[str, Any]:
    """Gradients and buffers of a network in training mode, whose blocks compute their maps again."""
    engine = engine_of(team, "tiny", SGD, Precision("cpu", dtype), live=True)
    engine.micro_batch = BATCH // 4  # as two stages have it
    engine.backward(batch_of(1))
    engine.settle()
    buffers = {name: buffer.numpy().copy() for name, buffer in engine.model.named_buffers()}
    return gradients_of(engine.model) | buffers


def go_on_from_a_save(team: Team) -> list[str]:
    """In the middle of an update: what the next batch makes otherwise of a saved and restored state."""
    engines = [engine_of(team, "tiny", ADAMW, Precision("cpu", torch.float32), live=True) for _ in range(2)]
    for number in range(3):
        engines[0].step(batch_of(number))
    engines[0].settle()
    engines[1].load_state_dict(copy.deepcopy(engines[0].state_dict()))
    states = []
    for engine in engines:
        engine.step(batch_of(3))
        engine.settle()
        states.append(everything(engine))
    assert states[0].keys() == states[1].keys()
    return [name for name, value in states[0].items() if not torch.equal(torch.as_tensor(value), states[1][name])]


def work(cases: Sequence[str]) -> dict[str, dict[str, Any]]:
    """All `cases` of `CASES`, one after the other in the same processes."""
    team = join_team(CPU)
    found = {name: CASES[name](team) for name in cases}
    team.leave()
    return found


CASES: dict[str, Callable[[Team], Any]] = {
    "yolo11n": partial(train, model="yolo11n", optimization=SGD),
    "yolov5n": partial(train, model="yolov5n", optimization=ADAMW),
    "float32": partial(step_with_live_statistics, dtype=torch.float32),
    "bfloat16": partial(step_with_live_statistics, dtype=torch.bfloat16),
    "save": go_on_from_a_save,
}


@pytest.fixture(scope="module")
def results() -> dict[int, list[dict[str, Any]]]:
    """What the processes of one, two and four give by rank."""
    return {
        count: run_together(count, work, cases) for count, cases in ((1, [*CASES]), (2, [*CASES]), (4, ["yolo11n"]))
    }


# AdamW moves a weight whose gradients are rounding errors as far as any other
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "count", "tolerance"), [("yolo11n", 2, 1e-3), ("yolo11n", 4, 1e-3), ("yolov5n", 2, 1e-2)]
)
def test_stages_train_as_one_process(
    results: dict[int, list[dict[str, Any]]], model: str, count: int, tolerance: float
) -> None:
    alone, stages = results[1][0][model], [each[model] for each in results[count]]
    largest = max(np.abs(value).max() for value in alone["own"].values())
    together = {name: value for stage in stages for name, value in stage["own"].items()}
    assert sum(len(stage["own"]) for stage in stages) == len(together)  # each process has the gradients of its stage
    assert together.keys() == alone["own"].keys()
    for name, value in alone["own"].items():
        assert np.abs(together[name] - value).max() <= 2e-6 * largest, name
    # how far 10 steps have gone; what is no weight began with zeros
    way = {name: np.abs(value - alone["before"].get(name, 0)).max() for name, value in alone["state"].items()}
    assert np.median([way[name] for name, value in alone["before"].items() if value.ndim == 4]) > 1e-3
    for stage in stages:
        assert stage["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert stage["flags"] == alone["flags"]
        assert stage["label ratio"] == pytest.approx(alone["label ratio"], rel=2e-6)
        assert stage["norms"] == pytest.approx(alone["norms"], rel=1e-3, nan_ok=True)
        assert stage["updates"] == pytest.approx(alone["updates"], rel=1e-3, nan_ok=True)
        # the whole model, its average, what the optimizer keeps, and the gradients of half an update
        assert stage["state"].keys() == alone["state"].keys()
        for name, value in alone["state"].items():
            assert np.abs(stage["state"][name] - value).max() <= tolerance * way[name] + 3e-7, name
    assert abs(alone["label ratio"] - 1) > 2e-5
    assert np.isfinite(alone["norms"]).sum() == STEPS // 2


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_live_statistics_are_those_of_one_process_that_computes_the_same_micro_batches(
    results: dict[int, list[dict[str, Any]]], dtype: str, tolerance: float
) -> None:
    alone = results[1][0][dtype]
    for stage in results[2]:
        assert stage[dtype].keys() == alone.keys()
        for name, value in alone.items():
            assert np.abs(stage[dtype][name] - value).max() <= tolerance * np.abs(value).max(), name


@pytest.mark.slow
def test_a_run_that_saves_in_an_update_goes_on_as_one_that_is_restored(
    results: dict[int, list[dict[str, Any]]],
) -> None:
    assert [each["save"] for each in (*results[1], *results[2])] == [[], [], []]


@pytest.mark.parametrize(
    ("given", "processes", "says"),
    [
        ({}, 1, "say how many by --processes"),
        ({"batch": 9}, 2, "can't be shared evenly by 2 processes"),
        ({"batch": "auto"}, 2, "with --strategy pipeline say a number"),
        *(
            ({name: True}, 2, f"does not go with --{name.replace('_', '-')}")
            for name in ("compile", "multi_scale", "rect")
        ),
    ],
)
def test_what_a_pipeline_cannot_do_is_refused_at_launch(given: dict[str, Any], processes: int, says: str) -> None:
    given = {"data": "data.yaml", "strategy": "pipeline"} | given
    with pytest.raises(UsageError, match=says):
        check_new(with_overrides(TrainConfig(), given), given, CPU, processes)
