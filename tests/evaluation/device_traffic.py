"""What a piece of code asks of a device: operations launched, and reads by which the host waits for it.

Counted on a CPU, where neither costs anything, so that it holds on every machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from launches import Launches
from yoloyard.models.heads.anchor_free import BINS

READS = {
    "cpu",
    "tolist",
    "item",
    "__bool__",
    "__float__",
    "__int__",
    "equal",
    "nonzero",
    "masked_select",
    "bincount",
    "numpy",
}


class _Reads(TorchFunctionMode):
    """Counts the calls that need a value, or a shape that depends on values, on the host."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.launches, self.before_copy = launches, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "cpu" and not self.counts["cpu"]:
            self.before_copy = len(self.launches.names)
        if name in READS:
            self.counts[name] += 1
        if name in ("__getitem__", "__setitem__"):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(place, torch.Tensor) and place.dtype == torch.bool for place in places):
                self.counts["boolean mask"] += 1
        return func(*args, **(kwargs or {}))


def traffic(work: Callable[[], object]) -> tuple[int, Counter[str]]:
    """The launches of `work` up to its first copy to the host, after which it is the host's, and all reads by name."""
    with Launches() as launches, _Reads(launches) as reads:
        work()
    return reads.before_copy, reads.counts


def maps_with_objects(
    images: int, objects: int, num_classes: int, side: int = 320, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    """Raw maps of an AnchorFreeHead as a trained network makes them, one for each of the strides 8, 16 and 32.

    Each of the `objects` of an image is found by every cell in it, unequally surely; the background is faint.
    """
    random = torch.Generator().manual_seed(seed)
    centres = torch.rand((images, objects, 2), generator=random) * side
    sizes = 16 + torch.rand((images, objects, 2), generator=random) * 80
    labels = torch.randint(0, num_classes, (images, objects), generator=random)
    maps = []
    for stride in (8, 16, 32):
        cells = side // stride
        logits = torch.randn((images, num_classes, cells, cells), generator=random) * 1.3 - 9
        distances = torch.full((images, 4, cells, cells), 4.0)
        points = (torch.arange(cells) + 0.5) * stride
        for image in range(images):
            for centre, size, label in zip(centres[image], sizes[image], labels[image], strict=True):
                low, high = centre - size / 2, centre + size / 2
                inside_x, inside_y = ((points > low[axis]) & (points < high[axis]) for axis in (0, 1))
                rows, columns = torch.meshgrid(inside_y.nonzero()[:, 0], inside_x.nonzero()[:, 0], indexing="ij")
                logits[image, label, rows, columns] = torch.rand(rows.shape, generator=random) * 9 - 6.5
                sides = torch.stack(
                    (
                        points[columns] - low[0],
                        points[rows] - low[1],
                        high[0] - points[columns],
                        high[1] - points[rows],
                    )
                )
                distances[image, :, rows, columns] = sides / stride + torch.randn(sides.shape, generator=random) * 0.3
        bins = torch.arange(BINS).view(1, 1, BINS, 1, 1)
        boxes = -2 * (distances.clamp(0, BINS - 1.5).unsqueeze(2) - bins).square()
        maps.append(torch.cat((boxes.flatten(1, 2), logits), dim=1).contiguous(memory_format=torch.channels_last))
    return tuple(maps)
