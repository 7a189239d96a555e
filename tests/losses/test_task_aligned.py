"""The loss of the anchor-free families: the reference's numbers, and what it promises about shapes and memory."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from memory import LiveBytes
from yoloyard.common.boxes import complete_iou
from yoloyard.cpu import points_in_boxes
from yoloyard.cpu.points_in_boxes import use_points_in_boxes
from yoloyard.losses.task_aligned import TaskAlignedLoss, distribution_loss
from yoloyard.models import registry

STRIDES = (8, 16, 32)
GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5, "l1": 1.5}


def criterion_of(num_classes: int, in_boxes: bool, weights: Tensor | None = None, **more: Any) -> TaskAlignedLoss:
    """The loss of all points, or of those in boxes alone, as on a CPU."""
    criterion = TaskAlignedLoss(STRIDES, num_classes, weights, **more)
    return use_points_in_boxes(criterion) if in_boxes else criterion


@pytest.mark.parametrize(
    ("predicted", "target", "ciou", "gradient"),
    [
        ((0, 0, 10, 10), (2, 3, 12, 9), 0.407087, (0.0440411, 0.0410894, 0.0468674, -0.0328927)),
        ((0, 0, 10, 4), (1, 1, 5, 9), 0.0830154, (-0.0013664, 0.0320496, -0.0207331, 0.0739569)),
        ((0, 0, 4, 4), (6, 6, 9, 12), -0.3539117, (-0.0024206, -0.0077720, 0.0231317, 0.0324238)),
        ((2, 2, 6, 6), (2, 2, 6, 6), 1.0, (0, 0, 0, 0)),
    ],
)
def test_complete_iou_and_its_gradient(
    predicted: tuple[float, ...], target: tuple[float, ...], ciou: float, gradient: tuple[float, ...]
) -> None:
    box = torch.tensor(predicted, dtype=torch.float32, requires_grad=True)
    value = complete_iou(box, torch.tensor(target, dtype=torch.float32))
    value.backward()
    assert value.item() == pytest.approx(ciou, abs=1e-6)
    assert box.grad is not None
    assert box.grad.tolist() == pytest.approx(gradient, abs=1e-6)


def test_distribution_focal_loss() -> None:
    log_distribution = (torch.arange(16) / 10).log_softmax(0).expand(1, 1, 4, 16)
    assert (log_distribution[0, 0, 0].exp() * torch.arange(16)).sum() == pytest.approx(9.539194, abs=1e-5)
    for distance, expected in ((0.0, 3.626651), (2.3, 3.396651), (7.0, 2.926651), (20.0, 2.127651)):
        target = torch.tensor([[[-distance, -distance, distance, distance]]])
        assert distribution_loss(log_distribution, target, torch.zeros(1, 2)).item() == pytest.approx(
            expected, abs=1e-5
        )


def some_maps(size: int, classes: int, images: int = 1, device: str = "cpu", bins: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(images, 4 * bins + classes, size // stride, size // stride) for stride in STRIDES]
    if device == "meta":
        return [torch.empty(shape, device=device, requires_grad=True) for shape in shapes]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def total(parts: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([GAINS[name] * (sums / norms.clamp(min=1)).sum() for name, (sums, norms) in parts.items()]).sum()


@pytest.mark.parametrize("in_boxes", [False, True])
def test_losses_and_gradients_stay_finite_at_the_edges(edge_boxes: list[list[float]], in_boxes: bool) -> None:
    maps, criterion = some_maps(64, 3), criterion_of(3, in_boxes)
    labels = [-1 if box == [0.0, 0, 0, 0] else 0 for box in edge_boxes]
    parts = criterion(maps, torch.tensor(edge_boxes).view(1, -1, 4), torch.tensor([labels]).long())
    loss = total(parts)
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(level.grad is not None and level.grad.isfinite().all() for level in maps)
    if not any(label >= 0 for label in labels):
        assert parts["box"][0].item() == parts["dfl"][0].item() == 0
        assert parts["cls"][0].item() > 0


def some_boxes(images: int, boxes: int, size: int, largest: float, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes of up to `largest` of the image's side, some of which hang over its edge, and labels, some of them -1."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(images, boxes, 2, generator=generator) * size
    sides = torch.rand(images, boxes, 2, generator=generator) * size * largest + 1
    labels = torch.randint(-1, 5, (images, boxes), generator=generator)
    return torch.cat((centres - sides / 2, centres + sides / 2), dim=2), labels


@pytest.mark.parametrize("largest", [0.2, 0.4, 0.9])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2, 0.5, 1, 3])])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", [{}, {"bins": 1}, {"bins": 1, "top_k": 7, "best_only": True}])
def test_points_in_boxes_give_the_loss_of_all_points(
    largest: float, weights: Tensor | None, seed: int, kind: dict[str, Any]
) -> None:
    boxes, labels = some_boxes(3, 17, 192, largest, seed)
    found = []
    for in_boxes in (False, True):
        # logits far apart, so that boxes of all sizes are predicted
        maps = [4 * level.detach() for level in some_maps(192, 5, images=3, bins=kind.get("bins", 16))]
        if kind:  # distances of all sizes, of which few are below zero
            maps = [torch.cat((level[:, :4] / 2 + 3, level[:, 4:]), dim=1) for level in maps]
        maps = [level.requires_grad_() for level in maps]
        parts = criterion_of(5, in_boxes, weights, **kind)(maps, boxes, labels)
        total(parts).backward()
        found.append((parts, [level.grad for level in maps]))
    (plain, plain_gradients), (quick, gradients) = found
    assert plain["box"][1] > 0.1
    for name in plain:
        torch.testing.assert_close(quick[name], plain[name], rtol=3e-6, atol=1e-6)
    torch.testing.assert_close(gradients, plain_gradients, rtol=1e-4, atol=1e-6)


def test_too_many_points_in_boxes_are_taken_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, labels = some_boxes(2, 9, 128, 0.5, 0)
    maps, criterion = some_maps(128, 5, images=2), criterion_of(5, in_boxes=True)
    few = criterion(maps, boxes, labels)
    monkeypatch.setattr(points_in_boxes, "MAX_PAIRS", 10)
    monkeypatch.setattr(points_in_boxes, "assign_inside", None)  # would fail
    many = criterion(maps, boxes, labels)
    for name in many:
        torch.testing.assert_close(many[name], few[name], rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("in_boxes", [False, True])
@pytest.mark.parametrize("channel", [5, 66])  # of the box logits, of the class logits
def test_what_is_not_finite_shows_in_the_loss(in_boxes: bool, channel: int) -> None:
    boxes, labels = some_boxes(1, 6, 128, 0.5, 0)
    maps = [level.detach() for level in some_maps(128, 5)]
    maps[0][:, channel] = math.nan
    assert not math.isfinite(total(criterion_of(5, in_boxes)(maps, boxes, labels)).item())


def test_boxes_that_share_points_whose_maps_are_not_finite_do_not_end_the_run() -> None:
    boxes, labels = torch.tensor([[[8.0, 8, 120, 120], [16.0, 16, 112, 112]]]), torch.tensor([[0, 1]])
    maps = [level.detach() for level in some_maps(128, 5)]
    maps[0][:, :, :, 8:] = math.nan
    assert not math.isfinite(total(criterion_of(5, in_boxes=True)(maps, boxes, labels)).item())


def test_five_thousand_boxes_an_image_need_less_than_two_gigabytes() -> None:
    """Batch 16 at 640 pixels, 20 classes, forward and backward of the loss: beside the maps, at most 2 GB at once."""
    with LiveBytes() as memory:
        maps = some_maps(640, 20, images=16, device="meta")
        boxes = torch.empty(16, 5000, 4, device="meta")
        labels = torch.empty(16, 5000, dtype=torch.int64, device="meta")
        total(TaskAlignedLoss(STRIDES, 20)(maps, boxes, labels)).backward()
    dense = 16 * 5000 * 8400 * 4
    assert memory.peak < 2 * 2**30 < dense


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov8n", "yolo11n"])
def test_model_and_loss_compile_into_one_graph(name: str) -> None:
    """`fullgraph` fails on anything that waits for the device or depends on the data in shape."""
    detector = registry.build(name, num_classes=3)
    criterion = TaskAlignedLoss(detector.strides, 3)

    def step(images: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        return total(criterion(detector(images), boxes, labels))

    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[4.0, 4, 30, 40], [10, 12, 50, 30]], [[0, 0, 0, 0], [0, 0, 0, 0]]])
    labels = torch.tensor([[0, 2], [-1, -1]])
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    loss = compiled(images, boxes, labels)
    loss.backward()
    assert loss.item() == pytest.approx(step(images, boxes, labels).item(), rel=1e-4)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters() if p.requires_grad)
