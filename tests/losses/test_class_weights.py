"""Weights of classes multiply what each class's column adds to the class loss, in both losses."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from yoloyard.losses.anchor_based import AnchorBasedLoss
from yoloyard.losses.task_aligned import TaskAlignedLoss
from yoloyard.models.yolov5 import P5_ANCHORS

STRIDES = (8, 16, 32)
ANCHORS = torch.tensor(P5_ANCHORS, dtype=torch.float32)
Loss = Callable[[list[Tensor], Tensor, Tensor], dict[str, tuple[Tensor, Tensor]]]


@dataclasses.dataclass(frozen=True)
class Kind:
    channels: int  # of a map
    make: Callable[[Tensor | None], Loss]
    class_channels: list[list[int]]  # of each class


KINDS = {
    "task-aligned": Kind(64 + 3, lambda weights: TaskAlignedLoss(STRIDES, 3, weights), [[64 + c] for c in range(3)]),
    "anchor-based": Kind(
        3 * 8,
        lambda weights: AnchorBasedLoss(ANCHORS, STRIDES, 3, label_smoothing=0.1, cls_pw=2.0, class_weights=weights),
        [[8 * a + 5 + c for a in range(3)] for c in range(3)],
    ),
}
BOXES, LABELS = torch.tensor([[[8.0, 8, 40, 50], [20, 20, 70, 60], [0, 0, 0, 0]]]), torch.tensor([[0, 2, -1]])


def some_maps(kind: Kind) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = [(1, kind.channels, 96 // stride, 96 // stride) for stride in STRIDES]
    return [torch.randn(shape, generator=random).requires_grad_() for shape in shapes]


def gradients(kind: Kind, weights: Tensor | None) -> tuple[dict[str, float], list[Tensor]]:
    """The loss's sums, and the gradient of the class part by channel."""
    maps = some_maps(kind)
    parts = kind.make(weights)(maps, BOXES, LABELS)
    parts["cls"][0].sum().backward()
    return {name: sums.sum().item() for name, (sums, _) in parts.items()}, [
        level.grad for level in maps if level.grad is not None
    ]


@pytest.mark.parametrize("name", KINDS)
def test_each_class_s_gradient_is_multiplied_by_its_weight(name: str) -> None:
    kind = KINDS[name]
    plain, plain_gradients = gradients(kind, None)
    weights = torch.tensor([2.0, 1.0, 0.25])
    weighted, weighted_gradients = gradients(kind, weights)
    assert weighted["box"] == plain["box"]
    assert weighted["cls"] != pytest.approx(plain["cls"], rel=1e-3)
    for before, after in zip(plain_gradients, weighted_gradients, strict=True):
        for channels, weight in zip(kind.class_channels, weights, strict=True):
            assert torch.allclose(after[:, channels], weight * before[:, channels], rtol=1e-5, atol=1e-7)
    ones, _ = gradients(kind, torch.ones(3))
    assert ones == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_the_weighted_loss_compiles_into_one_graph(name: str) -> None:
    """`fullgraph` fails on anything that waits for the device."""
    maps, criterion = some_maps(KINDS[name]), KINDS[name].make(torch.tensor([2.0, 1.0, 0.25]))
    compiled = torch.compile(criterion, fullgraph=True, backend="eager")
    expected = criterion(maps, BOXES, LABELS)
    for part, (sums, _) in compiled(maps, BOXES, LABELS).items():
        assert torch.allclose(sums, expected[part][0], rtol=1e-4)
