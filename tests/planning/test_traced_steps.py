"""What a step costs is known without the device: as much memory as a true step takes, for any number of images."""

import dataclasses
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity

from yoloyard import cpu
from yoloyard.common import device
from yoloyard.common.errors import UserError
from yoloyard.config.settings import OptimizerConfig, TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.models.profile import profile
from yoloyard.planning.figures import Precision, StepCost
from yoloyard.planning.trace import BOXES, PRECISIONS, StepTrace, build_model, trace_step, trace_steps
from yoloyard.training.engine.checkpointing import checkpoint_activations
from yoloyard.training.engine.engine import Engine
from yoloyard.training.engine.measures import LABELS_PERIOD
from yoloyard.training.setup.batch_size import noise
from yoloyard.training.setup.starting_point import set_training_mode

TESTS = Path(__file__).parents[1]
TINY = f"{TESTS / 'tiny_network.py'}:Tiny"
MODELS, SIZES, BATCHES = ("yolo11n", "yolo11s", "yolov5n", "yolov5s"), (192, 320), (2, 4)


def settings(model: str, imgsz: int = 64, images: int = 2, optimizer: str = "SGD", **others: Any) -> TrainConfig:
    """A run whose updates have one batch of `images`."""
    optimization = OptimizerConfig(optimizer=optimizer, nbs=images, warmup_epochs=0)
    return TrainConfig(model=model, imgsz=imgsz, batch=images, optimization=optimization, **others)


def measured_peak(config: TrainConfig, precision: Precision, recomputed: bool, on_cpu: bool) -> int:
    """The most bytes that torch's profiler saw a true step allocate on this CPU, beside what was there before it."""
    detector = build_model(config, 80)
    set_training_mode(detector)
    criterion, gains = build_criterion(detector.head, config, None if on_cpu else 10**15)
    arithmetic = device.Precision("cpu", PRECISIONS[precision])
    around_step = cpu.prepare_training(detector, criterion, arithmetic, 1) if on_cpu else nullcontext
    if recomputed:
        checkpoint_activations(detector)
    engine = Engine(detector, criterion, gains, arithmetic, config, 10**6, around_step=around_step)
    batch = noise(config.batch, config.imgsz, BOXES, 80)
    engine.step(batch)  # from here on the optimizer has its state
    engine.number, engine.last_update = LABELS_PERIOD, LABELS_PERIOD - 1  # a step that measures itself takes the most
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        engine.step(batch)
    changes, events = [], list(profiler.profiler.kineto_results.experimental_event_tree())
    for event in events:  # which grows meanwhile
        events += event.children
        if event.tag.name == "Allocation":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    now = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        now += change
        peak = max(peak, now)
    return peak


def check_peak(
    model: str, imgsz: int, images: int, precision: Precision = "float32", recomputed: bool = False, on_cpu: bool = True
) -> None:
    config = settings(model, imgsz, images)
    traced = trace_step(config, 80, images, precision, recomputed, on_cpu)
    measured = measured_peak(config, precision, recomputed, on_cpu)
    assert traced.peak_bytes - traced.held_bytes == pytest.approx(measured, rel=0.15)


def test_a_traced_peak_is_that_of_a_true_step() -> None:
    check_peak(TINY, 160, 2)


@pytest.mark.slow
@pytest.mark.parametrize("images", BATCHES)
@pytest.mark.parametrize("imgsz", SIZES)
@pytest.mark.parametrize("model", MODELS)
def test_traced_peaks_are_those_of_true_steps(model: str, imgsz: int, images: int) -> None:
    check_peak(model, imgsz, images)


@pytest.mark.slow
@pytest.mark.parametrize("on_cpu", [True, False], ids=["cpu", "accelerator"])
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("precision", ["float32", "amp"])
def test_traced_peaks_with_mixed_precision_and_recomputed_activations(
    precision: Precision, recomputed: bool, on_cpu: bool
) -> None:
    check_peak("yolo11n", 224, 2, precision, recomputed, on_cpu)


@pytest.fixture(scope="module")
def tiny() -> dict[tuple[Precision, bool], StepTrace]:
    """The traces of a small network, by precision and whether activations are recomputed."""
    traces = trace_steps(settings(TINY, images=64), 3)
    return {(trace.costs[0].precision, trace.costs[0].recomputed): trace for trace in traces}


@pytest.mark.parametrize("images", [7, *(pytest.param(images, marks=pytest.mark.slow) for images in (1, 40))])
def test_two_traces_give_the_cost_of_any_number_of_images(
    images: int, tiny: dict[tuple[Precision, bool], StepTrace]
) -> None:
    found, true = tiny["amp", True].cost(images), trace_step(settings(TINY, images=64), 3, images, "amp", True)
    same = ("images", "precision", "recomputed", "parameters", "weights_bytes", "gradients_bytes", "optimizer_bytes")
    assert [getattr(found, name) for name in same] == [getattr(true, name) for name in same]
    assert found.peak_bytes == pytest.approx(true.peak_bytes, rel=1e-2 if images == 1 else 1e-6)
    assert found.flops == pytest.approx(true.flops, rel=1e-6)


def test_the_largest_micro_batch_is_the_last_one_that_fits(tiny: dict[tuple[Precision, bool], StepTrace]) -> None:
    trace = tiny["float32", False]
    assert [trace.largest(trace.peak(images)) for images in (1, 5, 1000)] == [1, 5, 1000]
    assert trace.largest(trace.peak(5) - 1) == 4
    assert trace.largest(trace.peak(1) - 1) == 0


def test_mixed_precision_and_recomputing_save_memory(tiny: dict[tuple[Precision, bool], StepTrace]) -> None:
    kept, mixed, again = (tiny[each].cost(16) for each in (("float32", False), ("amp", False), ("float32", True)))
    assert mixed.peak_bytes < kept.peak_bytes
    assert again.peak_bytes < kept.peak_bytes
    assert mixed.activations_bytes < 0.8 * kept.activations_bytes
    assert mixed.flops == kept.flops < again.flops


@cache
def cost(**others: Any) -> StepCost:
    return trace_step(settings(TINY, **others), 3, 2, "float32", False)


def test_weights_optimizer_and_average_count_as_they_are() -> None:
    parameters = list(build_model(settings(TINY), 3).parameters())
    numbers, trained = sum(map(torch.numel, parameters)), sum(each.numel() for each in parameters if each.requires_grad)
    found, twice = cost(), cost(optimizer="AdamW")
    assert found.parameters == numbers
    assert found.gradients_bytes == found.optimizer_bytes == 4 * trained
    assert twice.optimizer_bytes == pytest.approx(2 * found.optimizer_bytes, rel=0.05)  # and counts of steps
    assert cost(optimizer="auto") == twice
    assert 4 * numbers < found.weights_bytes == found.average_bytes < 4.1 * numbers  # and running statistics
    assert cost(freeze="stem").gradients_bytes < found.gradients_bytes


def test_gradients_that_wait_for_an_update_take_memory() -> None:
    waiting = dataclasses.replace(settings(TINY), optimization=OptimizerConfig(optimizer="SGD", nbs=64))
    found = trace_step(waiting, 3, 2, "float32", False)
    assert found.held_bytes - cost().held_bytes == found.gradients_bytes


@pytest.mark.parametrize(
    "model", [TINY, *(pytest.param(name, marks=pytest.mark.slow) for name in ("yolo11s", "yolov5n"))]
)
def test_a_step_computes_three_forwards(model: str) -> None:
    """The backward pass asks two more of each convolution: for its weights, and for its input, if that is no image."""
    detector = build_model(settings(model), 80)
    found = trace_step(settings(model, imgsz=160), 80, 2, "float32", False)
    expected = profile(detector, 160)
    assert found.parameters == expected.parameters
    first = expected.layers[0].flops
    assert found.flops == pytest.approx(2 * (3 * (expected.flops + expected.attention_flops) - first), rel=0.03)


MODEL = """
import torch
from centre_head import Centre
from tiny_network import Tiny

class Looks(Tiny):
    def forward(self, images):
        if images.shape[0] > 1 and images.mean() > 0.5:
            images = images / 2
        return super().forward(images)

class Counts(Centre):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        build = self.head.criterion
        def build_counting(*arguments):
            loss, gains = build(*arguments)
            def counting(maps, boxes, labels):
                images, slots = (labels >= 0).nonzero(as_tuple=True)
                return loss(maps, boxes[:, : len(slots)], labels[:, : len(slots)])
            return counting, gains
        self.head.criterion = build_counting
"""


def test_a_network_that_reads_numbers_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    with pytest.raises(UserError, match=r"mine\.py, line 8 \(`if images\.shape.*no\s+number of a tensor") as caught:
        trace_step(settings(f"{tmp_path}/mine.py:Looks"), 3, 2, "float32", False)
    assert "\n" not in str(caught.value)


def test_a_loss_of_ones_own_may_read_numbers(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    found = trace_step(settings(f"{tmp_path}/mine.py:Counts"), 3, 2, "float32", False)
    assert 0 < found.activations_bytes < found.peak_bytes
