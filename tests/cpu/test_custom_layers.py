"""Layers that a custom model may put into a `Conv` block: what is joined or folded computes what they compute."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from yoloyard import cpu
from yoloyard.common.device import Precision
from yoloyard.cpu.silu import ConvolutionSiLU, join_batch_norm_and_silu, join_convolutions_and_silu
from yoloyard.models.blocks import Conv
from yoloyard.models.detector import Detector
from yoloyard.models.heads import Head


class Small(Detector):
    """Two blocks; its head has nothing to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Conv(4, 8, 3), Conv(8, 8, 3)
        self.head = Head((8,), num_classes=1, strides=(8,), outputs=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def convolution(**arguments: object) -> Callable[[Small], None]:
    def change(network: Small) -> None:
        network.second.conv = nn.Conv2d(8, 8, **{"kernel_size": 3, "padding": 1, "bias": False, **arguments})  # type: ignore[arg-type]

    return change


def normalisation(**arguments: object) -> Callable[[Small], None]:
    def change(network: Small) -> None:
        network.second.bn = nn.BatchNorm2d(8, **arguments)  # type: ignore[arg-type]

    return change


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def use_a_subclass(network: Small) -> None:
    network.second.conv = Doubled(8, 8, 3, padding=1)


def share_a_convolution(network: Small) -> None:
    network.first = Conv(4, 8, 3)
    network.first.conv = network.second.conv = nn.Conv2d(8, 8, 3, padding=1)
    network.first = nn.Sequential(nn.Conv2d(4, 8, 1), network.first)  # type: ignore[assignment]


def transpose(network: Small) -> None:
    network.second.conv = nn.ConvTranspose2d(8, 8, 3, padding=1)  # type: ignore[assignment]


def normalise_the_spectrum(network: Small) -> None:
    parametrizations.spectral_norm(network.second.conv)


def normalise_the_weight(network: Small) -> None:
    parametrizations.weight_norm(network.second.conv)


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def double_the_scale(network: Small) -> None:
    parametrize.register_parametrization(network.second.bn, "weight", Double())


def hook(layer: str) -> Callable[[Small], None]:
    def change(network: Small) -> None:
        network.second.get_submodule(layer).register_forward_hook(lambda module, inputs, output: output + 1)

    return change


def hook_before(layer: str) -> Callable[[Small], None]:
    def change(network: Small) -> None:
        network.second.get_submodule(layer).register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))

    return change


def hook_behind(layer: str) -> Callable[[Small], None]:
    def change(network: Small) -> None:
        def double(module: nn.Module, into: Any, out: Any) -> tuple[Tensor]:
            return (2 * into[0],)

        network.second.get_submodule(layer).register_full_backward_hook(double)

    return change


def stop_tracking(network: Small) -> None:
    network.second.bn.track_running_stats = False


def activate_in_place(network: Small) -> None:
    network.second.activation = nn.SiLU(inplace=True)


# the change, and whether an evaluation still joins the block that it changes
CHANGES = {
    "nothing": (lambda network: None, True),
    "padding by reflection": (convolution(padding_mode="reflect"), False),
    "padding around": (convolution(padding_mode="circular"), False),
    "padding by name": (convolution(padding="same"), False),
    "groups": (convolution(groups=4), True),
    "dilation": (convolution(dilation=2, padding=2), True),
    "stride": (convolution(stride=2), True),
    "one-sided kernel": (convolution(kernel_size=(1, 3), padding=(0, 1)), True),
    "bias": (convolution(bias=True), True),
    "a class of its own": (use_a_subclass, False),
    "shared convolution": (share_a_convolution, True),
    "transposed": (transpose, False),
    "spectral norm": (normalise_the_spectrum, False),
    "weight norm": (normalise_the_weight, False),
    "scale made by a function": (double_the_scale, False),
    "no scale": (normalisation(affine=False), False),
    "no statistics": (normalisation(track_running_stats=False), False),
    "statistics of before": (stop_tracking, True),
    "mean of all batches": (normalisation(momentum=None), True),
    "SiLU in place": (activate_in_place, True),
    "hook on the convolution": (hook("conv"), False),
    "hook on BatchNorm": (hook("bn"), False),
    "hook on SiLU": (hook("activation"), False),
    "hook before BatchNorm": (hook_before("bn"), False),
    "hook before SiLU": (hook_before("activation"), False),
    "hook behind BatchNorm": (hook_behind("bn"), False),
    "hook behind SiLU": (hook_behind("activation"), False),
}


@pytest.fixture(params=CHANGES)
def case(request: pytest.FixtureRequest) -> tuple[Small, bool]:
    change, is_joined = CHANGES[request.param]
    torch.manual_seed(0)
    network = Small()
    change(network)
    network.train()
    for _ in range(3):  # statistics that are not the first ones
        network(2 * torch.randn(4, 4, 9, 9) + 1)
    return network, is_joined


def test_a_training_step_of_joined_layers_is_the_one_of_two(case: tuple[Small, bool]) -> None:
    plain, _ = case
    joined = copy.deepcopy(plain)
    join_batch_norm_and_silu(joined)
    x, y = torch.randn(4, 4, 9, 9), torch.randn(1)
    for network in (plain, joined):
        network.zero_grad()
        (network(x) * y).square().sum().backward()
    torch.testing.assert_close(joined.state_dict(), plain.state_dict())
    for (name, one), other in zip(plain.named_parameters(), joined.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_a_fused_and_joined_copy_computes_the_same(case: tuple[Small, bool]) -> None:
    plain, is_joined = case
    x = torch.randn(2, 4, 9, 9)
    fused = plain.fused()
    join_convolutions_and_silu(fused)
    assert isinstance(fused.second.conv, ConvolutionSiLU) == is_joined
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), plain.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor lacks its instructions")
def test_a_joined_copy_computes_in_the_precision_of_its_run() -> None:
    torch.manual_seed(0)
    plain, x = Small().eval(), torch.randn(2, 4, 9, 9)
    fused = plain.fused()
    cpu.prepare_evaluation(fused, Precision("cpu", torch.bfloat16))
    assert isinstance(fused.second.conv, ConvolutionSiLU)
    with torch.inference_mode():
        expected = plain(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = fused(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)
