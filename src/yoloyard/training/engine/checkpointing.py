"""`--checkpoint-activations`: blocks whose maps are not kept for the backward pass, but computed again there.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from yoloyard.models.detector import Detector

BatchNorm = nn.modules.batchnorm._BatchNorm


def checkpoint_activations(detector: Detector) -> None:
    """Let each of the `blocks` of `detector` keep its input alone while it is trained.

    Gradients and buffers stay the same to the last bit. A forward and a backward pass take a forward more.
    """
    for block in detector.blocks:
        if block is not None:
            block.forward_with_maps = block.forward  # type: ignore[assignment]
            block.forward = MethodType(_forward, block)


def _forward(block: Any, *inputs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return block.forward_with_maps(*inputs)
    if torch.compiler.is_compiling():  # the compiler knows by itself what it may compute twice
        return checkpoint(block.forward_with_maps, *inputs, use_reentrant=False)
    contexts = lambda: (nullcontext(), without_statistics(block))  # noqa: E731  # of the two forwards
    return checkpoint(block.forward_with_maps, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def without_statistics(block: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm counts into copies of its statistics: in the true ones a batch is to be counted once."""
    kept = [(module, dict(module._buffers)) for module in block.modules() if isinstance(module, BatchNorm)]
    for module, buffers in kept:
        module._buffers.update({name: value.clone() for name, value in buffers.items() if value is not None})
    try:
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)
