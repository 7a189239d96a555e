"""`--compile`: what the step calls, by torch.compile, tried before the first step, so that no run fails for it."""

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from yoloyard.common.device import Precision, same_random_numbers
from yoloyard.common.errors import memory_line
from yoloyard.common.image_size import shape_of
from yoloyard.config.settings import TrainConfig
from yoloyard.models.detector import Detector

log = logging.getLogger(__name__)

Shape = tuple[int, int, int, int]


def shapes_vary(config: TrainConfig) -> bool:
    """Do training batches have many sizes?"""
    return config.multi_scale or config.rect


def shape_to_try(config: TrainConfig, processes: int, stride: int, channels: int = 3) -> Shape:
    """(B, channels, H, W) of one process's batches; where they vary, a rectangle, whose numbers are all different."""
    images, (height, width) = config.batch // processes, shape_of(config.imgsz)
    while shapes_vary(config) and height == images:
        height += stride
    while shapes_vary(config) and width in (images, height):
        width += stride
    return images, channels, height, width


def compile_network(
    network: nn.Module,
    detector: Detector,
    shape: Shape,
    precision: Precision,
    dynamic: bool = False,
    backend: str = "inductor",
    pieces: Sequence[nn.Module] = (),
) -> nn.Module:
    """`network` compiled for training batches of `shape` (B, channels, H, W), or itself, with a line that says why not.

    `network` is `detector` in training mode, or what shares its work among processes. `dynamic`: one program serves all
    H and W. Then H, W and B must differ in `shape`, since the compiler takes equal numbers for ones that are always
    equal. What can't be compiled in one piece, such as a custom model that prints, is compiled in several. `pieces`:
    modules whose forwards are compiled instead, in place, since processes exchange weights between them.
    """
    is_shared = isinstance(network, DistributedDataParallel)  # which exchanges gradients between the pieces
    forwards = [piece.forward for piece in pieces]
    for in_one_piece in [False] if is_shared else [True, False]:
        make = partial(torch.compile, fullgraph=in_one_piece, dynamic=dynamic, backend=backend)
        compiled = network if pieces else make(network)
        for piece, forward in zip(pieces, forwards, strict=True):
            piece.forward = make(forward)
        began = time.perf_counter()
        try:
            # Pieces of one class have one forward, which is compiled for each of them.
            with torch._dynamo.config.patch(recompile_limit=max(torch._dynamo.config.recompile_limit, len(pieces))):
                _try_out(compiled, network, detector, shape, precision)
            log.info(f"compile: the network was compiled in {time.perf_counter() - began:.0f} seconds")
            return compiled  # type: ignore[return-value]
        except torch._dynamo.exc.Unsupported as error:
            log.info(f"compile: the network can't be compiled in one piece, so in several: {_first_line(error)}")
        except Exception as error:  # whatever else it is: the step works without
            if memory_line(error) and pieces:  # no process can go on alone
                raise
            if memory_line(error):  # it compiles; the step makes parts of the batch, which are compiled when they come
                return compiled  # type: ignore[return-value]
            log.info(f"compile: this does not work here, training goes on without it: {_first_line(error)}")
            break
    for piece, forward in zip(pieces, forwards, strict=True):
        piece.forward = forward
    return network


def _try_out(
    compiled: Callable[..., list[Tensor]], network: nn.Module, detector: Detector, shape: Shape, precision: Precision
) -> None:
    """Compile by a forward and a backward; leaves neither gradients nor statistics nor random numbers behind."""
    device = next(itertools.chain(detector.buffers(), detector.parameters())).device  # shards may lie elsewhere
    buffers = {name: buffer.clone() for name, buffer in detector.named_buffers()}
    images = torch.zeros(shape, device=device).to(memory_format=torch.channels_last)
    try:
        with (
            network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext(),
            same_random_numbers(device),
        ):
            with precision.autocast():
                maps = compiled(images)
            torch.stack([level.float().sum() for level in maps]).sum().backward()
    finally:
        with torch.no_grad():
            for name, buffer in detector.named_buffers():
                buffer.copy_(buffers[name])
        detector.zero_grad()


def _first_line(error: Exception) -> str:
    """The kind of an error and what it says, without the pages that follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {said:.300}"
