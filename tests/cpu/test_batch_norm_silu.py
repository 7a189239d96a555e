"""BatchNorm and SiLU as one operation: what the two layers say, with less kept for the backward pass."""

import copy

import pytest
import torch
from torch import Tensor, nn

from memory import SavedBytes
from yoloyard.cpu.silu import batch_norm_silu, can_be_one, join_batch_norm_and_silu
from yoloyard.models import registry
from yoloyard.models.blocks import Conv


def layer(channels: int = 5, dtype: torch.dtype = torch.float32) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    bn = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03).to(dtype)
    nn.init.uniform_(bn.weight, -1.5, 1.5)
    nn.init.uniform_(bn.bias, -1, 1)
    return bn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_two_layers(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    bn = layer()
    plain = copy.deepcopy(bn)
    x = (3 * torch.randn(4, 5, 6, 7) + 2).to(dtype, memory_format=memory_format).requires_grad_()
    same = x.detach().clone().requires_grad_()
    one, two = batch_norm_silu(x, bn), nn.functional.silu(plain(same))
    assert torch.equal(one, two)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in bn.state_dict().items())
    gradient = torch.randn_like(one)
    one.backward(gradient)
    two.backward(gradient)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for ours, theirs in ((x, same), (bn.weight, plain.weight), (bn.bias, plain.bias)):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, atol=tolerance, rtol=tolerance)


def test_its_gradients_are_those_of_small_differences() -> None:
    conv = Conv(3, 3).double()
    conv.conv = nn.Identity()  # type: ignore[assignment]
    join_batch_norm_and_silu(conv)

    def of(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(conv, {"bn.weight": weight, "bn.bias": bias}, x)

    bn = layer(3, torch.float64)
    x = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    assert can_be_one(conv.bn, conv.activation, x)
    assert torch.autograd.gradcheck(of, (x, bn.weight, bn.bias))


def test_frozen_weights_leave_the_other_gradients_as_they_are() -> None:
    x = torch.randn(2, 5, 3, 3, requires_grad=True)
    frozen = torch.autograd.grad(batch_norm_silu(x, layer().requires_grad_(False)).sum(), x)
    torch.testing.assert_close(frozen, torch.autograd.grad(nn.functional.silu(layer()(x)).sum(), x))


def test_a_training_step_keeps_a_quarter_less() -> None:
    network = registry.build("yolo11n", num_classes=3).train()

    def kept() -> int:
        saved = SavedBytes(ignored=[*network.parameters()])
        with saved:
            network(torch.rand(2, 3, 64, 64))
        return saved.bytes

    plain = kept()
    join_batch_norm_and_silu(network)
    assert kept() < 0.75 * plain


class Odd(Conv):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def test_copies_and_blocks_of_other_classes_stay_what_they_are() -> None:
    network, x = nn.Sequential(Conv(3, 5), Odd(5, 5)), torch.rand(2, 3, 4, 4)
    expected = copy.deepcopy(network)(x)
    join_batch_norm_and_silu(network)
    average = copy.deepcopy(network)
    assert torch.equal(network(x), expected)
    assert torch.equal(average(x), expected)
    average(x)
    counts = [each.state_dict()["0.bn.num_batches_tracked"] for each in (network, average)]
    assert counts == [1, 2]
    assert network.state_dict().keys() == nn.Sequential(Conv(3, 5), Odd(5, 5)).state_dict().keys()


def test_only_in_training_and_only_for_these_two_layers() -> None:
    conv, x = Conv(3, 5), torch.zeros(2, 5, 4, 4)
    assert can_be_one(conv.bn, conv.activation, x)
    assert not can_be_one(conv.bn, nn.Hardswish(), x)
    assert not can_be_one(nn.SyncBatchNorm.convert_sync_batchnorm(Conv(3, 5)).bn, conv.activation, x)
    assert not can_be_one(nn.BatchNorm2d(5, momentum=None), conv.activation, x)
    assert not can_be_one(conv.bn, conv.activation, x.to("meta"))
    assert not can_be_one(conv.eval().bn, conv.activation, x)
    assert can_be_one(conv.train().bn, conv.activation, x)
    with torch.no_grad():
        assert not can_be_one(conv.bn, conv.activation, x)
    join_batch_norm_and_silu(conv)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        conv(torch.zeros(1, 3, 1, 1))
