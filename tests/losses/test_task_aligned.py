"""The loss of the anchor-free families: the reference's numbers, and what it promises about shapes and memory."""

import math

import pytest
import torch
from torch import Tensor

from memory import LiveBytes
from yoloyard.boxes import complete_iou
from yoloyard.losses.task_aligned import TaskAlignedLoss, _distribution_loss
from yoloyard.models import registry

STRIDES = (8, 16, 32)
GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}


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
        assert _distribution_loss(log_distribution, target, torch.zeros(1, 2)).item() == pytest.approx(
            expected, abs=1e-5
        )


def some_maps(size: int, classes: int, images: int = 1, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(images, 64 + classes, size // stride, size // stride) for stride in STRIDES]
    if device == "meta":
        return [torch.empty(shape, device=device, requires_grad=True) for shape in shapes]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def total(parts: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack(
        [gain * (parts[name][0] / parts[name][1].clamp(min=1)).sum() for name, gain in GAINS.items()]
    ).sum()


@pytest.mark.parametrize(
    "boxes",
    [
        [[0.0, 0, 0, 0]],  # no box: one padded slot
        [],  # not even a slot
        [[10.0, 10, 11, 11]],  # one pixel
        [[-90.0, -90, 200, 200]],  # larger than the image
        [[100.0, 100, 130, 130]],  # outside
        [[8.0, 8, 40, 40], [8.0, 8, 40, 40]],  # two on the same cells
        [[20.0, 20, 20, 20]],  # of no size
    ],
)
def test_losses_and_gradients_stay_finite_at_the_edges(boxes: list[list[float]]) -> None:
    maps = some_maps(64, 3)
    labels = [-1 if box == [0.0, 0, 0, 0] else 0 for box in boxes]
    parts = TaskAlignedLoss(STRIDES, 3)(maps, torch.tensor(boxes).view(1, -1, 4), torch.tensor([labels]).long())
    loss = total(parts)
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(level.grad is not None and level.grad.isfinite().all() for level in maps)
    if not any(label >= 0 for label in labels):
        assert parts["box"][0].item() == parts["dfl"][0].item() == 0
        assert parts["cls"][0].item() > 0


def test_five_thousand_boxes_an_image_need_less_than_two_gigabytes() -> None:
    """Batch 16 at 640 pixels, 20 classes, forward and backward of the loss: beside the maps, at most 2 GB at once."""
    with LiveBytes() as memory:
        maps = some_maps(640, 20, images=16, device="meta")
        boxes = torch.empty(16, 5000, 4, device="meta")
        labels = torch.empty(16, 5000, dtype=torch.int64, device="meta")
        total(TaskAlignedLoss(STRIDES, 20)(maps, boxes, labels)).backward()
    dense = 16 * 5000 * 8400 * 4
    assert memory.peak < 2 * 2**30 < dense


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
