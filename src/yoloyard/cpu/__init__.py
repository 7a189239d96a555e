"""What is for speed on a CPU alone. It is applied here, from outside; models, losses and the step know nothing of it.

Whether it is wanted is said by `Precision.has_cpu_paths`. Figures stay the same up to rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count

import torch
from torch import nn

from yoloyard.common.device import Precision
from yoloyard.cpu.memory import give_memory_back, reuse_memory
from yoloyard.cpu.points_in_boxes import use_points_in_boxes
from yoloyard.cpu.silu import join_batch_norm_and_silu, join_convolutions_and_silu
from yoloyard.losses import Criterion

SETTLED_BATCH = 1  # of the process, from 0: after it maps lie in memory where later steps put them, too


def prepare_training(
    model: nn.Module, criterion: Criterion, precision: Precision, num_processes: int
) -> Callable[[], AbstractContextManager[None]]:
    """Change `model` and `criterion` in place, and the process's memory, where the run has CPU paths.

    Returns what makes the context around forward and backward of each batch.
    """
    if not precision.has_cpu_paths:
        return nullcontext
    reuse_memory(precision)
    join_batch_norm_and_silu(model)
    use_points_in_boxes(criterion)
    batches = count()

    @contextmanager
    def around_step() -> Iterator[None]:
        # Several processes have gradients in the memory of what they exchange.
        with early_gradients(model) if num_processes == 1 else nullcontext():
            yield
        if next(batches) == SETTLED_BATCH:
            give_memory_back(precision)  # what the first batches left between their maps

    return around_step


def prepare_evaluation(fused: nn.Module, precision: Precision) -> None:
    """Change `fused`, the copy of a network for evaluation, in place where its run has CPU paths."""
    if precision.has_cpu_paths:
        join_convolutions_and_silu(fused, precision.dtype)


@contextmanager
def early_gradients(network: nn.Module) -> Iterator[None]:
    """Around forward and backward: give each parameter without a gradient one of zeros, before maps fill the memory.

    Otherwise the backward pass puts the gradients on a CPU where maps have just been freed, which leaves no room for a
    large one. A parameter that the backward pass did not reach has no gradient afterwards, as everywhere.
    """
    without = [parameter for parameter in network.parameters() if parameter.requires_grad and parameter.grad is None]
    for parameter in without:
        parameter.grad = torch.zeros_like(parameter)
    try:
        yield
    finally:
        for parameter in without:
            if parameter.grad is not None and parameter.grad._version == 0:  # the backward pass has added nothing
                parameter.grad = None
