"""The loss of YOLOv9 in training: two sets of branches, each with its own assignment and norm."""

import math

import pytest
import torch
from torch import Tensor

from launches import Launches
from memory import LiveBytes
from yoloyard.config.settings import TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.losses.branches import AUXILIARY_SHARES, BranchesLoss, ReachLoss
from yoloyard.models.heads import AuxiliaryHead

STRIDES, CLASSES = (8, 16, 32), 5
GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}


def some_maps(size: int, sets: int, images: int = 2, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(images, sets * (64 + CLASSES), size // stride, size // stride) for stride in STRIDES]
    if device == "meta":
        return [torch.empty(shape, device=device, requires_grad=True) for shape in shapes]
    return [(4 * torch.randn(shape, generator=generator)).requires_grad_() for shape in shapes]


def some_boxes(images: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(images, 9, 2, generator=generator) * 100
    high = low + torch.rand(images, 9, 2, generator=generator) * 80 + 1
    return torch.cat((low, high), dim=2), torch.randint(-1, CLASSES, (images, 9), generator=generator)


def total(parts: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack(
        [gain * (parts[name][0] / parts[name][1].clamp(min=1)).sum() for name, gain in GAINS.items()]
    ).sum()


@pytest.fixture
def criterion() -> BranchesLoss:
    return BranchesLoss(2 * (ReachLoss(STRIDES, CLASSES),), AUXILIARY_SHARES, AUXILIARY_SHARES)


def test_each_set_of_branches_is_learned_as_if_alone_and_the_auxiliary_one_counts_a_quarter(
    criterion: BranchesLoss,
) -> None:
    maps, targets = some_maps(128, sets=2), some_boxes()
    own, auxiliary = (list(half) for half in zip(*(level.chunk(2, dim=1) for level in maps), strict=True))
    both = criterion(maps, *targets)
    alone, other = (ReachLoss(STRIDES, CLASSES)(levels, *targets) for levels in (own, auxiliary))
    for name in GAINS:
        assert both[name][0].tolist() == [alone[name][0].item(), 0.25 * other[name][0].item()]
        assert both[name][1].tolist() == [alone[name][1].item(), other[name][1].item()]
        assert alone[name][1] != other[name][1]
    total(both).backward()
    assert all(level.grad is not None and level.grad[:, 69:].abs().sum() > 0 for level in maps)


def test_the_head_names_the_loss_and_settings_give_its_gains() -> None:
    head = AuxiliaryHead((8, 8, 8), CLASSES, STRIDES, auxiliary_channels=(8, 8, 8))
    criterion, gains = build_criterion(head, TrainConfig(class_weights="1,1,1,1,1"))
    assert gains == GAINS
    parts = criterion(head([torch.rand(2, 8, size, size) for size in (16, 8, 4, 16, 8, 4)]), *some_boxes())
    assert {name: (len(sums), len(norms)) for name, (sums, norms) in parts.items()} == dict.fromkeys(GAINS, (2, 2))


def test_losses_and_gradients_stay_finite_at_the_edges(edge_boxes: list[list[float]], criterion: BranchesLoss) -> None:
    maps = some_maps(64, sets=2, images=1)
    labels = [-1 if box == [0.0, 0, 0, 0] else 0 for box in edge_boxes]
    loss = total(criterion(maps, torch.tensor(edge_boxes).view(1, -1, 4), torch.tensor([labels]).long()))
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(level.grad is not None and level.grad.isfinite().all() for level in maps)


@pytest.mark.parametrize("channel", [5, 66, 75, 136])  # box and class logits of both sets
def test_what_is_not_finite_shows_in_the_loss(channel: int, criterion: BranchesLoss) -> None:
    maps = [level.detach() for level in some_maps(128, sets=2)]
    maps[0][:, channel] = math.nan
    assert not math.isfinite(total(criterion(maps, *some_boxes())).item())


def test_a_thousand_boxes_an_image_need_less_than_two_gigabytes(criterion: BranchesLoss) -> None:
    """As many as the loss of one set of branches may need."""
    with LiveBytes() as memory:
        maps = some_maps(640, sets=2, images=16, device="meta")
        boxes = torch.empty(16, 1000, 4, device="meta")
        labels = torch.empty(16, 1000, dtype=torch.int64, device="meta")
        total(criterion(maps, boxes, labels)).backward()
    assert memory.peak < 2 * 2**30


def test_nothing_is_read_from_the_device(criterion: BranchesLoss) -> None:
    maps, targets = some_maps(64, sets=2, device="meta"), [each.to("meta") for each in some_boxes()]
    criterion(maps, *targets)  # what is made once a shape
    with Launches(forbid_reads=True):
        total(criterion(maps, *targets)).backward()
