"""A forward cut into stages (`--strategy pipeline`): the same numbers, about equal costs; a line where it can't be."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tiny_network import Tiny
from yoloyard.common.device import Precision
from yoloyard.common.errors import UsageError
from yoloyard.models import registry
from yoloyard.training.strategies.cutting import cut

SHAPE = (2, 3, 64, 64)


@pytest.mark.parametrize(
    "family",
    ["yolo11", *(pytest.param(name, marks=pytest.mark.slow) for name in registry.FAMILIES if name != "yolo11")],
)
def test_stages_compute_what_the_whole_network_does(family: str) -> None:
    build, sizes = registry.FAMILIES[family]
    detector = build(sizes.split()[0], num_classes=3)
    before = copy.deepcopy(detector.state_dict())
    stages = cut(detector, 4, SHAPE)
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    images = torch.rand(SHAPE).to(memory_format=torch.channels_last)
    values: tuple[Tensor, ...] = (images,)
    detector.eval()
    with torch.no_grad():
        for stage in stages:
            assert [each.shape for each in values] == [each.shape for each in stage.takes]
            values = stage.module(*values)
        assert all(map(torch.equal, values, detector(images)))
    assert max(stage.share for stage in stages) < 0.36
    parameters = [parameter for stage in stages for parameter in stage.module.parameters()]
    assert len(parameters) == len(set(parameters)) == len(list(detector.parameters()))


def test_what_lies_between_stages_has_the_type_of_the_arithmetic() -> None:
    _, last = cut(Tiny(3), 2, SHAPE, Precision("cpu", torch.bfloat16))
    assert [(each.shape, each.dtype) for each in last.takes] == [
        ((2, 8, side, side), torch.bfloat16) for side in (8, 2)
    ]


class Listing(Tiny):
    """Whose first block gives a list."""

    def __init__(self) -> None:
        super().__init__(3)
        self.backbone = Backbone(self.stem, self.fine, self.coarse)
        del self.stem, self.fine, self.coarse

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.head(self.backbone(images))


class Backbone(nn.Module):
    def __init__(self, stem: nn.Module, fine: nn.Module, coarse: nn.Module) -> None:
        super().__init__()
        self.stem, self.fine, self.coarse = stem, fine, coarse

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(self.stem(images))
        return [fine, self.coarse(fine)]


def test_a_block_may_give_several_maps_in_a_list() -> None:
    _, last = cut(Listing(), 2, SHAPE)
    assert [[each.shape[-1] for each in maps] for maps in last.takes] == [[8, 2]]


class Looking(Tiny):
    def forward(self, images: Tensor) -> list[Tensor]:
        return super().forward(images.flip(3) if images.mean() > 0.5 else images)


def sharing() -> Tiny:
    detector = Tiny(3)
    detector.coarse.bn.weight = detector.stem.bn.weight
    return detector


@pytest.mark.parametrize(
    ("detector", "count", "says"),
    [
        (Looking(3), 2, "its forward depends on what it meets"),
        (Tiny(3), 5, r"behind 3 of its `blocks`, .* 5 processes"),
        (sharing(), 4, "two stages share the parameter coarse.bn.weight"),
    ],
)
def test_a_network_that_cannot_be_cut_is_refused_with_the_reason(detector: Tiny, count: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        cut(detector, count, SHAPE)
