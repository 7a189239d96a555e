"""Gradients that lie in memory before the maps of a forward pass do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def early_gradients(network: nn.Module) -> Iterator[None]:
    """Around forward and backward: give each parameter without a gradient one of zeros, before maps fill the memory.

    Otherwise the backward pass puts the gradients on a CPU where maps have just been freed, which leaves no room for a
    large one. A parameter that the backward pass did not reach has no gradient afterwards, as everywhere.
    """
    without = [parameter for parameter in network.parameters() if parameter.requires_grad and parameter.grad is None]
    for parameter in without:
        parameter.grad = torch.zeros_like(parameter)
    yield
    for parameter in without:
        if parameter.grad is not None and parameter.grad._version == 0:  # the backward pass has added nothing
            parameter.grad = None
