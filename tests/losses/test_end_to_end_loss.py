"""The loss of two pairs of branches: the published numbers, and shares that follow the epoch."""

import pytest
import torch
from torch import Tensor

from on_device import SGD, Training, some_batch
from tiny_network import Tiny
from yoloyard.common.boxes import complete_iou
from yoloyard.config.settings import LossConfig, TrainConfig
from yoloyard.cpu.points_in_boxes import use_points_in_boxes
from yoloyard.losses import build_criterion
from yoloyard.losses.branches import FIRST_SHARES, LAST_SHARES, BranchesLoss
from yoloyard.losses.task_aligned import TaskAlignedLoss, side_loss
from yoloyard.models.heads import AnchorFreeHead, EndToEndHead

CPU = torch.device("cpu")
STRIDES = (8, 16, 32)
GAINS = {"box": 7.5, "cls": 0.5, "l1": 1.5}
HEIGHT, WIDTH = 64, 96
TARGETS = [  # of each image: class, centre and size as shares of the image
    [(0, 0.375, 0.5, 0.4, 0.5), (1, 0.75, 0.3, 0.25, 0.4), (1, 0.7, 0.8, 0.05, 0.06)],
    [(0, 0.5, 0.5, 0.7, 0.8)],
]
# Published: losses with their gains; sums of the gradients' absolute values by the share of one-to-many, for boxes and
# scores of one-to-many, then of one-to-one.
PUBLISHED = {"box": (3.413747, 3.344982), "cls": (5.060432, 6.954127), "l1": (0.120619, 0.101167)}
TOTALS = {
    0: (0.8, 17.911787, (7.442507, 5.604093, 2.253773, 2.247077)),
    50: (0.446465, 19.188389, (4.153521, 3.127537, 6.237716, 6.219182)),
    99: (0.1, 20.439455, (0.930313, 0.700512, 10.141980, 10.111846)),
}


def criterion_of(in_boxes: bool = False) -> BranchesLoss:
    """The loss of YOLO26 for two classes, of all points or, as on a CPU, of those in boxes."""
    many, one = TaskAlignedLoss(STRIDES, 2, bins=1), TaskAlignedLoss(STRIDES, 2, bins=1, top_k=7, best_only=True)
    criterion = BranchesLoss((many, one), FIRST_SHARES, LAST_SHARES)
    return use_points_in_boxes(criterion) if in_boxes else criterion


def published_maps() -> list[Tensor]:
    """Maps of both pairs of branches (2, 12, h, w), by formulas of the point's number."""
    sizes = [(HEIGHT // stride, WIDTH // stride) for stride in STRIDES]
    point, image = torch.arange(sum(h * w for h, w in sizes)), torch.arange(2).view(2, 1)
    rows = []
    for shift in (0, 4):
        rows += [0.5 + (point * (side + 3) + shift) % 11 / 5 + image * 0.25 for side in range(4)]
        rows += [(7 * point + 5 * cls + shift) % 13 / 4 - 5 - image * 0.5 for cls in range(2)]
    levels = torch.stack(rows, dim=1).split([h * w for h, w in sizes], dim=2)
    return [level.unflatten(2, size).clone().requires_grad_() for level, size in zip(levels, sizes, strict=True)]


def published_targets() -> tuple[Tensor, Tensor]:
    """Boxes (2, 4, 4) and labels (2, 4), padded."""
    boxes, labels = torch.zeros(2, 4, 4), torch.full((2, 4), -1)
    for image, rows in enumerate(TARGETS):
        for slot, (label, x, y, width, height) in enumerate(rows):
            corners = torch.tensor([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
            boxes[image, slot] = corners * torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
            labels[image, slot] = label
    return boxes, labels


@pytest.mark.parametrize("in_boxes", [False, True])
@pytest.mark.parametrize("epoch", TOTALS)
def test_losses_and_gradients_are_the_published_ones(epoch: int, in_boxes: bool) -> None:
    share, expected_total, expected_gradients = TOTALS[epoch]
    maps, criterion = published_maps(), criterion_of(in_boxes)
    criterion.set_epoch(epoch, 100)
    parts = criterion(maps, *published_targets())
    losses = {name: gain * parts[name][0] / parts[name][1].clamp(min=1) for name, gain in GAINS.items()}
    for name, (many, one) in PUBLISHED.items():
        assert losses[name].tolist() == pytest.approx([share * many, (1 - share) * one], rel=1e-5)
    total = 2 * torch.cat(list(losses.values())).sum()
    assert total.item() == pytest.approx(expected_total, rel=1e-5)
    total.backward()
    gradients = torch.cat([level.grad.flatten(2) for level in maps if level.grad is not None], dim=2)
    sums = [part.abs().sum().item() for part in gradients.split((4, 2, 4, 2), dim=1)]
    assert sums == pytest.approx(expected_gradients, rel=1e-5)


def test_the_loss_of_sides_is_a_share_of_the_image() -> None:
    point, target = torch.tensor([4.5, 2.5]), torch.tensor([3.0, 1.0, 8.0, 2.0])
    predicted = torch.tensor([4.5 - 1, 2.5 - 2, 4.5 + 3, 2.5 - 0.5])
    scale = TaskAlignedLoss((8, 16), 1, bins=1).side_scale([torch.empty(1, 5, 8, 12)], torch.tensor([16.0]))
    assert 0.5 * side_loss(None, predicted, target, point, scale).item() == pytest.approx(0.036458, abs=1e-6)
    assert 0.5 * (1 - complete_iou(predicted, target)).item() == pytest.approx(0.215559, abs=1e-6)


@pytest.mark.parametrize(
    ("epochs", "shares"),
    [
        (100, {0: 0.8, 1: 0.792929, 2: 0.785859, 10: 0.729293, 49: 0.453535, 98: 0.107071, 99: 0.1, 120: 0.1}),
        (5, {0: 0.8, 1: 0.625, 2: 0.45, 3: 0.275, 4: 0.1}),
        (2, {0: 0.8, 1: 0.1}),
        (1, {0: 0.8}),
        (300, {150: 0.448829}),
        (245, {122: 0.45}),
    ],
)
def test_the_share_of_one_to_many_falls_from_epoch_to_epoch(epochs: int, shares: dict[int, float]) -> None:
    criterion = criterion_of()
    for epoch, share in shares.items():
        criterion.set_epoch(epoch, epochs)
        assert criterion.shares == pytest.approx((share, 1 - share), abs=1e-6)


def test_the_step_knows_the_epoch_by_the_number_of_its_batch() -> None:
    """So a resumed run needs no state for it, and one with a limit of time may change its number of epochs."""
    config = TrainConfig(batch=2, epochs=3, optimization=SGD)
    training = Training(CPU, model="tiny both", config=config, batches_per_epoch=2)
    shares = []
    for seed in range(6):
        training.step(some_batch(seed=seed))
        shares.append(training.engine.criterion.shares[0])  # type: ignore[attr-defined]
    assert shares == pytest.approx([0.8, 0.8, 0.45, 0.45, 0.1, 0.1])
    training.engine.plan(7)
    training.step(some_batch())
    assert training.engine.criterion.shares[0] == pytest.approx(0.45)  # type: ignore[attr-defined]


def test_backbone_and_neck_learn_from_the_one_to_many_branches_alone() -> None:
    training = Training(CPU, model="tiny both")
    training.engine.criterion.shares = 0.0, 1.0  # type: ignore[attr-defined]
    training.backward(some_batch())
    named = training.detector.named_parameters()
    moved = [name for name, parameter in named if parameter.grad is not None and parameter.grad.any()]
    assert any("box" in name for name in moved)
    assert all(name.startswith("head.one_to_one") for name in moved)


def test_each_head_gets_the_loss_of_its_branches() -> None:
    config = TrainConfig(loss=LossConfig(box=1.0, cls=2.0, dfl=3.0))
    made = {}
    for paths, kind, more in (
        ("many", AnchorFreeHead, {"bins": 1}),
        ("one", AnchorFreeHead, {"bins": 1, "needs_suppression": False}),
        ("both", EndToEndHead, {"bins": 16}),
    ):
        made[paths] = build_criterion(Tiny(3, kind, **more).head, config)
    for paths, best_only in (("many", False), ("one", True)):
        criterion, gains = made[paths]
        assert isinstance(criterion, TaskAlignedLoss)
        assert (criterion.bins, criterion.top_k, criterion.best_only) == (1, 7 if best_only else 10, best_only)
        assert gains == {"box": 1.0, "cls": 2.0, "l1": 3.0}
    criterion, gains = made["both"]
    assert isinstance(criterion, BranchesLoss)
    assert [(each.bins, each.top_k, each.best_only) for each in criterion.branches] == [(16, 10, False), (16, 7, True)]
    assert gains == {"box": 1.0, "cls": 2.0, "dfl": 3.0}


@pytest.mark.parametrize("in_boxes", [False, True])
def test_images_without_boxes_are_learned_as_background(in_boxes: bool) -> None:
    maps = published_maps()
    parts = criterion_of(in_boxes)(maps, torch.zeros(2, 4, 4), torch.full((2, 4), -1))
    assert parts["box"][0].tolist() == parts["l1"][0].tolist() == parts["box"][1].tolist() == [0, 0]
    assert (parts["cls"][0] > 0).all()
