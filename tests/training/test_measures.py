"""What the step measures of itself: right, on the device alone, and without a trace in the training."""

import math

import pytest
import torch
from torch import Tensor

from on_device import Training, everything, some_batch
from yoloyard.training.engine import measures

CPU = torch.device("cpu")


def test_the_length_of_an_update_is_that_of_the_weights_before_and_after() -> None:
    training = Training(CPU)
    before = [weight.detach().clone() for weight in training.engine._watched]
    figures = training.step(some_batch()).send().figures()
    after = [weight.detach() for weight in training.engine._watched]
    moved = sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True))
    length = sum(float(each.square().sum()) for each in before)
    assert figures.update_ratio == pytest.approx(math.sqrt(moved / length), rel=1e-4)
    assert figures.gradient_norm > 0
    assert figures.scale == 1


def test_updates_are_measured_every_ten_batches_and_labels_every_ten_updates() -> None:
    training = Training(CPU, accumulate=2)
    figures = [training.step(some_batch()).send().figures() for _ in range(21)]
    assert [each.number for each in figures if not math.isnan(each.label_ratio)] == [0, 20]
    updates = [each.number for each in figures if not math.isnan(each.gradient_norm)]
    assert updates == list(range(1, 21, 2))
    assert [each.number for each in figures if not math.isnan(each.update_ratio)] == [1, 11]


def test_the_loss_is_compared_with_that_of_the_labels_of_the_next_image() -> None:
    def criterion(maps: list[Tensor], boxes: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        assert not maps[0].requires_grad or boxes is batch.boxes
        distance = (maps[0] - boxes[..., 0]).abs().sum()
        return {"box": (distance[None], torch.tensor([4.0])), "cls": ((labels + 1).sum()[None], torch.tensor([0.5]))}

    batch = some_batch()
    maps = [batch.boxes[..., 0] + 1.0]
    maps[0].requires_grad_()
    parts = criterion(maps, batch.boxes, batch.labels)
    engine = Training(CPU).engine
    engine.criterion, engine.gains = criterion, {"box": 2.0, "cls": 0.0}
    ratio = measures.label_ratio(engine, maps, batch, parts)
    slots = batch.boxes[..., 0].numel()
    shuffled = float((batch.boxes[..., 0] + 1 - batch.boxes.roll(1, 0)[..., 0]).abs().sum())
    assert float(ratio) == pytest.approx(slots / shuffled)


def test_the_gradient_of_a_sample_leaves_no_trace() -> None:
    training = Training(CPU)
    training.step(some_batch())
    engine, before = training.engine, everything(training.engine)
    norm = measures.sample_norm(engine, engine.model, some_batch(seed=1))
    assert 0 < norm < math.inf
    after = everything(engine)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in training.detector.parameters())
