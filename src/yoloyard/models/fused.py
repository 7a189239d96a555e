"""A detector for evaluation alone: normalisation folded into the convolutions before it."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from yoloyard.common.device import has_cpu_paths
from yoloyard.models.blocks import Conv

Module = TypeVar("Module", bound=nn.Module)
BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm


@torch.no_grad()
def fuse(module: Module) -> Module:
    """A copy of `module` in evaluation mode whose `Conv` blocks have no BatchNorm; the same up to rounding.

    In evaluation a normalisation is a factor and an offset for each channel, which a convolution can do itself. The
    statistics are those of now, so a network that is trained further must be fused again. Blocks of other classes, as a
    network of the user's own may have, stay as they are.
    """
    fused = copy.deepcopy(module).eval().requires_grad_(False)
    for block in fused.modules():
        if type(block) is Conv and isinstance(block.bn, BatchNorm) and isinstance(block.conv, nn.Conv2d):
            block.conv, block.bn = _folded(block.conv, block.bn), nn.Identity()  # type: ignore[assignment]
            if type(block.activation) is nn.SiLU and has_cpu_paths(block.conv.weight.device) and _HAS_SWISH:
                block.conv, block.activation = _ConvSwish(block.conv), nn.Identity()  # type: ignore[assignment]
    return fused


# Convolution and activation as one operation of oneDNN, which spares a walk through memory; compiled graphs use it too.
_HAS_SWISH = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class _ConvSwish(nn.Module):
    """A convolution with its SiLU, on the CPU, in the precision of autocast or of the input."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self._of: dict[torch.dtype, tuple[Tensor, Tensor]] = {}  # weight and bias

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if dtype not in self._of:
            assert self.conv.bias is not None
            self._of[dtype] = self.conv.weight.to(dtype), self.conv.bias.to(dtype)
        where = (self.conv.padding, self.conv.stride, self.conv.dilation, self.conv.groups)
        swish = torch.ops.mkldnn._convolution_pointwise
        return swish(x.to(dtype), *self._of[dtype], *where, "swish", [], "")


def _folded(conv: nn.Conv2d, bn: BatchNorm) -> nn.Conv2d:
    assert isinstance(bn.running_mean, Tensor)
    assert isinstance(bn.running_var, Tensor)
    factor = bn.weight * torch.rsqrt(bn.running_var + bn.eps)  # (channels,)
    offset = bn.bias - bn.running_mean * factor
    with torch.device("meta"):
        folded = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]  # pairs are as good
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
        )
    folded.weight = nn.Parameter(conv.weight * factor.view(-1, 1, 1, 1), requires_grad=False)
    folded.bias = nn.Parameter(offset if conv.bias is None else offset + conv.bias * factor, requires_grad=False)
    return folded.eval()
