"""Convolution and SiLU in evaluation as one operation of oneDNN, which spares a walk through memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yoloyard.models.blocks import Conv

HAS_SWISH = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def join_convolutions_and_silu(fused: nn.Module) -> None:
    """Join both in the `Conv` blocks of `fused`, a network without normalisations in them that is not trained."""
    for block in fused.modules() if HAS_SWISH else ():
        is_folded = type(block) is Conv and isinstance(block.bn, nn.Identity)
        if is_folded and type(block.conv) is nn.Conv2d and type(block.activation) is nn.SiLU:
            block.conv, block.activation = ConvolutionSiLU(block.conv), nn.Identity()


class ConvolutionSiLU(nn.Module):
    """A convolution with its SiLU, in the precision of autocast or of the input."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self._of: dict[torch.dtype, tuple[Tensor, Tensor | None]] = {}  # weight and bias

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if dtype not in self._of:
            bias = None if self.conv.bias is None else self.conv.bias.to(dtype)
            self._of[dtype] = self.conv.weight.to(dtype), bias
        where = (self.conv.padding, self.conv.stride, self.conv.dilation, self.conv.groups)
        swish = torch.ops.mkldnn._convolution_pointwise
        return swish(x.to(dtype), *self._of[dtype], *where, "swish", [], "")
