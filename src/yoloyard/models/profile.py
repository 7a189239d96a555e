"""What a detector costs: layers, parameters and floating-point operations, traced without a device.

FLOPs are those of one image; a multiplication with its addition counts as two, as in the published figures, which are
those of the convolutions alone. The products of attention are counted apart.
"""

import copy
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from yoloyard.models.detector import Detector


@dataclass(frozen=True)
class LayerProfile:
    """One block of a detector."""

    index: int  # position in the published order
    name: str
    kind: str
    parameters: int
    flops: int  # of its convolutions
    attention_flops: int


@dataclass(frozen=True)
class Profile:
    """A detector's cost for one image of imgsz x imgsz pixels."""

    layers: tuple[LayerProfile, ...]
    parameters: int
    flops: int  # of the convolutions
    attention_flops: int
    strides: tuple[int, ...]
    imgsz: int


def profile(detector: Detector, imgsz: int = 640, device: str = "meta") -> Profile:
    """Cost of `detector` for an image (1, channels, imgsz, imgsz), imgsz in pixels.

    The detector stays as it is, on its device. A copy is traced on the meta device, where nothing is computed, or on
    another `device` if its forward looks at numbers.
    """
    traced = copy.deepcopy(detector).to(device).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        traced(torch.zeros(1, detector.image_channels, imgsz, imgsz, device=device))
    counts = {path.partition(".")[2]: operators for path, operators in counter.get_flop_counts().items()}

    names = {id(module): name for name, module in traced.named_modules()}
    blocks = [(index, names[id(block)], block) for index, block in enumerate(traced.blocks) if block is not None]
    layers = tuple(
        LayerProfile(index, name, type(block).__name__, *_cost(block, counts.get(name, {})))
        for index, name, block in blocks
    )
    return Profile(layers, *_cost(traced, counter.get_flop_counts()["Global"]), detector.strides, imgsz)


def _cost(module: torch.nn.Module, operators: dict[object, int]) -> tuple[int, int, int]:
    """Parameters, operations of convolutions, and those of all other products."""
    convolution = operators.get(torch.ops.aten.convolution, 0)
    return sum(map(torch.numel, module.parameters())), convolution, sum(operators.values()) - convolution
