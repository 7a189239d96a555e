"""Networks that run out of memory where a test says so, with torch's own error."""

from typing import Any

import torch
from torch import Tensor, nn


class _Limit(torch.autograd.Function):
    """The identity; its forward or its backward raises for more than so many pixels of all images together."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pixels: int, where: str) -> Tensor:
        ctx.pixels, ctx.where = pixels, where
        _check(x, pixels, where == "forward")
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        _check(gradient, ctx.pixels, ctx.where == "backward")
        return gradient, None, None


def _check(x: Tensor, pixels: int, counts: bool) -> None:
    here = x.shape[0] * x.shape[2] * x.shape[3]
    if counts and here > pixels:
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {here} pixels")


class Limit(nn.Module):
    """The identity that raises torch's OutOfMemoryError above `pixels` pixels (all images) in training."""

    def __init__(self, pixels: int, where: str = "forward") -> None:
        super().__init__()
        self.pixels, self.where = pixels, where

    def forward(self, x: Tensor) -> Tensor:
        return _Limit.apply(x, self.pixels, self.where) if self.training else x


def limit(module: nn.Module, pixels: int, where: str = "forward") -> Any:
    """Let what `module` gives go through a `Limit`; returns the handle that takes it away."""
    block = Limit(pixels, where)
    return module.register_forward_hook(lambda _, inputs, output: block.train(module.training)(output))
