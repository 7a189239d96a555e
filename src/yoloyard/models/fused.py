"""A detector for evaluation alone: normalisation folded into the convolutions before it."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from yoloyard.models.blocks import Conv

Module = TypeVar("Module", bound=nn.Module)
BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm


@torch.no_grad()
def fuse(module: Module) -> Module:
    """A copy of `module` in evaluation mode whose `Conv` blocks have no BatchNorm; the same up to rounding.

    In evaluation a normalisation is a factor and an offset for each channel, which a convolution can do itself. The
    statistics are those of now, so a network that is trained further must be fused again. Blocks of other classes, as a
    custom model may have, stay as they are.
    """
    fused = copy.deepcopy(module).eval().requires_grad_(False)
    for block in fused.modules():
        if type(block) is Conv and isinstance(block.bn, BatchNorm) and isinstance(block.conv, nn.Conv2d):
            block.conv, block.bn = _folded(block.conv, block.bn), nn.Identity()  # type: ignore[assignment]
    return fused


def _folded(conv: nn.Conv2d, bn: BatchNorm) -> nn.Conv2d:
    assert isinstance(bn.running_mean, Tensor)
    assert isinstance(bn.running_var, Tensor)
    factor = bn.weight * torch.rsqrt(bn.running_var + bn.eps)  # (channels,)
    offset = bn.bias - bn.running_mean * factor
    folded = copy.deepcopy(conv)  # which may stand in other blocks, too
    folded.weight = nn.Parameter(conv.weight * factor.view(-1, 1, 1, 1), requires_grad=False)
    folded.bias = nn.Parameter(offset if conv.bias is None else offset + conv.bias * factor, requires_grad=False)
    return folded
