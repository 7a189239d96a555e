"""A step that exhausts the memory is made in smaller parts: same gradients and losses, and nothing is lost."""

import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exhausted import limit
from on_device import Training, everything, some_batch
from tiny_network import Tiny
from yoloyard.common.device import Precision
from yoloyard.common.errors import TooLittleMemoryError
from yoloyard.config.settings import OptimizerConfig, TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.training.engine.compilation import compile_network
from yoloyard.training.engine.engine import Engine
from yoloyard.training.state.checkpoint import Progress, snapshot_of
from yoloyard.training.strategies.alone import Strategy

CPU = torch.device("cpu")
STEM = 16 * 16  # pixels of an image of 64 x 64 behind the first convolution of the tiny network


def training_of(model: str = "tiny", accumulate: int = 1, dtype: torch.dtype = torch.float32) -> Training:
    """With frozen normalisation, whose statistics are those of a batch, so that parts compute what the whole does."""
    training = Training(CPU, dtype, model, accumulate=accumulate)
    normalisations = [module for module in training.detector.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in normalisations:
        module.momentum = 1.0
    with torch.no_grad():
        training.detector.train()(some_batch(4).images / 255)
    for module in normalisations:
        assert module.running_var is not None
        module.running_var += module.running_var.mean()
        module.eval()
    return training


def gradients_of(training: Training) -> dict[str, Tensor]:
    named = training.detector.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal up to the rounding of sums in another order."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-4 * float(value.abs().max()) + 1e-7), name


def block_of(training: Training, where: str) -> nn.Module:
    """Where the memory ends; in the backward pass in the middle, when some gradients are there already."""
    modules = dict(training.detector.named_modules())
    names = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    return modules[names[0 if where == "forward" else len(names) // 2]]


def pixels_at(training: Training, block: nn.Module) -> int:
    """Pixels of one image of a test's batch behind `block`."""
    shapes: list[tuple[int, ...]] = []
    handle = block.register_forward_hook(lambda _, inputs, output: shapes.append(output.shape))
    with torch.no_grad():
        training.detector(torch.zeros(1, 3, 64, 64))
    handle.remove()
    return shapes[0][2] * shapes[0][3]


@pytest.mark.parametrize(
    ("where", "model", "images", "fits"),
    [
        ("forward", "tiny", 4, 2),
        ("backward", "tiny", 3, 1),
        ("forward", "tiny both", 4, 2),
        pytest.param("backward", "tiny both", 3, 1, marks=pytest.mark.slow),
        ("forward", "yolov5n", 3, 2),
        ("backward", "yolov5n", 5, 2),
        pytest.param("forward", "yolo11n", 4, 2, marks=pytest.mark.slow),
        pytest.param("backward", "yolo11n", 3, 1, marks=pytest.mark.slow),
        pytest.param("forward", "yolo12n", 5, 1, marks=pytest.mark.slow),
        pytest.param("backward", "yolov5n6", 4, 1, marks=pytest.mark.slow),
    ],
)
def test_parts_give_the_gradients_and_losses_of_the_whole_batch(where: str, model: str, images: int, fits: int) -> None:
    whole, parts = training_of(model), training_of(model)
    block = block_of(parts, where)
    limit(block, fits * pixels_at(parts, block), where)
    for seed in range(2):  # once where the memory ends, once with what was learnt
        batch = some_batch(images, seed=seed)
        batch.labels[0] = -1  # parts differ in their norms
        expected, found = whole.backward(batch), parts.backward(batch)
        assert torch.allclose(found, expected, rtol=1e-4)
        # before the second batch the first one's gradients are there, and must not be scaled with it
        assert_same(gradients_of(parts), gradients_of(whole))
    assert parts.engine.micro_batch == fits


def test_a_loss_of_the_users_with_norms_that_follow_from_predictions() -> None:
    whole, parts = training_of(), training_of()
    for training in (whole, parts):
        criterion = training.engine.criterion

        def own(maps: list[Tensor], boxes: Tensor, labels: Tensor, criterion: Any = criterion) -> dict[str, Any]:
            parts = criterion(maps, boxes, labels)
            return {name: (sums, norm * len(name)) for name, (sums, norm) in parts.items()}

        training.engine.criterion = own
    limit(block_of(parts, "forward"), 2 * STEM)
    batch = some_batch(4)
    assert torch.allclose(parts.backward(batch), whole.backward(batch), rtol=1e-4)
    assert_same(gradients_of(parts), gradients_of(whole))


def test_forwards_for_norms_alone_leave_the_statistics_as_they_were() -> None:
    training = Training(CPU, model="tiny both")
    limit(block_of(training, "forward"), 2 * STEM)
    training.backward(some_batch(4))
    counts = [value for name, value in training.detector.state_dict().items() if name.endswith("num_batches_tracked")]
    assert all(int(count) == 2 for count in counts)  # a part each


def test_a_batch_of_many_boxes_is_made_in_parts_too() -> None:
    whole, parts = training_of(), training_of()
    criterion = parts.engine.criterion

    def small(maps: list[Tensor], boxes: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        if labels.numel() > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return criterion(maps, boxes, labels)

    parts.engine.criterion = small
    batch = some_batch(4, boxes=32)
    assert torch.allclose(parts.backward(batch), whole.backward(batch), rtol=1e-4)
    assert_same(gradients_of(parts), gradients_of(whole))
    assert parts.engine.micro_batch == 2


def test_scaled_float16_gradients_stay_finite() -> None:
    """Plain sums would be as many times larger as there are targets, more than float16 holds."""
    whole, parts = training_of(dtype=torch.float16), training_of(dtype=torch.float16)
    for training in (whole, parts):
        criterion = training.engine.criterion

        def many(maps: list[Tensor], boxes: Tensor, labels: Tensor, criterion: Any = criterion) -> dict[str, Any]:
            found = criterion(maps, boxes, labels)
            norm = 1000 * found["box"][1]
            return {name: (1000 * sums, norm) for name, (sums, _) in found.items()}

        training.engine.criterion, training.engine.scaler._init_scale = many, 8192.0
    limit(block_of(parts, "forward"), 2 * STEM)
    batch = some_batch(4, boxes=16)
    whole.backward(batch)
    parts.backward(batch)
    pairs = [(gradient, gradients_of(whole)[name]) for name, gradient in gradients_of(parts).items()]
    found, expected = (torch.cat([gradient.flatten() for gradient in column]) for column in zip(*pairs, strict=True))
    assert (found - expected).norm() < 1e-2 * expected.norm()


def test_whole_steps_with_accumulation_end_with_the_same_weights() -> None:
    whole, parts = training_of(accumulate=2), training_of(accumulate=2)
    block = block_of(parts, "backward")
    handle = limit(block, pixels_at(parts, block), "backward")
    for seed in range(4):
        if seed == 2:  # the new size is kept, though there is memory now
            handle.remove()
        for training in (whole, parts):
            training.step(some_batch(2, seed=seed))
        assert parts.engine.micro_batch == 1
    state, expected = parts.detector.state_dict(), whole.detector.state_dict()
    for name, value in expected.items():
        if value.is_floating_point():
            assert torch.allclose(state[name], value, rtol=1e-4, atol=1e-6), name


def test_all_memory_of_an_attempt_is_free_before_the_next_one() -> None:
    training = training_of()
    maps: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if len(inputs[0]) == 4:
            maps.append(weakref.ref(output))
        elif not alive:
            alive.append(sum(each() is not None for each in maps))

    for module in training.detector.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(keep)
    block = block_of(training, "backward")
    limit(block, 2 * pixels_at(training, block), "backward")
    training.backward(some_batch(4))
    assert len(maps) > 5
    assert alive == [0]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_one_image_that_is_too_much_ends_the_run_with_what_to_lower(where: str) -> None:
    training = training_of(accumulate=2)
    training.step(some_batch(2))
    gradients, weights = gradients_of(training), everything(training.engine)
    limit(block_of(training, where), 0, where)
    with pytest.raises(TooLittleMemoryError, match=r"one image at a time: lower --imgsz.*Tried to allocate"):
        training.step(some_batch(2, seed=1))
    assert training.engine.number == 1
    assert all(torch.equal(value, weights[name]) for name, value in everything(training.engine).items())
    # those of the first batch as they were, or none, but no mixture with the second's
    after = gradients_of(training)
    assert after.keys() == (gradients.keys() if where == "forward" else set())
    assert all(torch.equal(value, gradients[name]) for name, value in after.items())


def test_other_errors_are_not_taken_for_too_little_memory() -> None:
    training = training_of()

    def broken(*_: object) -> None:
        raise RuntimeError("sizes must match")

    block_of(training, "forward").register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="sizes must match"):
        training.step(some_batch(2))
    assert training.engine.micro_batch == sys.maxsize


def test_a_save_is_asked_for_and_the_size_stands_in_the_checkpoint() -> None:
    training, other = training_of(), training_of()
    assert training.step(some_batch(4)).asked.tolist() == [0, 0]
    limit(block_of(training, "forward"), 2 * STEM)
    assert training.step(some_batch(4)).asked.tolist() == [0, 1]
    assert training.engine.agree_on_micro_batch() == 2
    assert training.step(some_batch(4)).asked.tolist() == [0, 0]
    assert training.engine.agree_on_micro_batch() == 0  # no news
    snapshot = snapshot_of({}, training.engine, Progress(), [])
    other.engine.load_state_dict(snapshot)
    assert other.engine.micro_batch == 2


def test_the_size_does_not_grow_again_when_the_run_goes_back_to_an_earlier_checkpoint() -> None:
    training = training_of()
    snapshot = snapshot_of({}, training.engine, Progress(), [])
    limit(block_of(training, "forward"), 2 * STEM)
    training.step(some_batch(4))
    training.engine.load_state_dict(snapshot)
    assert training.engine.agree_on_micro_batch() == 2  # a line says so
    del snapshot["engine"]["micro_batch"]  # as in a checkpoint of an earlier version
    training.engine.load_state_dict(snapshot)
    assert training.engine.micro_batch == 2
    assert training.engine.agree_on_micro_batch() == 0  # it was said


@pytest.mark.slow
def test_a_compiled_network_in_parts_learns_what_the_plain_one_learns() -> None:
    found = []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        detector = Tiny(3).train()
        config = TrainConfig(batch=4, imgsz=64, optimization=OptimizerConfig(optimizer="SGD", nbs=4))
        criterion, gains = build_criterion(detector.head, config)
        precision = Precision("cpu", torch.float32)
        network = (
            compile_network(detector, detector, (4, 3, 64, 64), precision, backend="aot_eager") if is_compiled else None
        )
        engine = Engine(detector, criterion, gains, precision, config, 10, Strategy(detector, network=network))
        losses = [engine.step(some_batch(4, seed=0)).losses]
        engine.micro_batch = 2
        found.append(torch.stack([*losses, *(engine.step(some_batch(4, seed=seed)).losses for seed in (1, 2))]))
    torch.testing.assert_close(*found)
