"""The kept reference numbers (tests/data/reference) and the formula that fills weights and inputs.

Numbers made by the formula are not kept: they follow from a name and a shape alone, on every machine and numpy.
`tests/parity/make_reference.py` uses the same formula to ask the reference package for the expected outputs.

Shapes: B batch, M boxes per image (padded), C classes, P anchor points.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from yoloyard.models.detector import Detector
from yoloyard.models.importers import published_names
from yoloyard.structures import Batch

FOLDER = Path(__file__).parent / "data" / "reference"
STRIDES = (8, 16, 32)


def formula(name: str, shape: Sequence[int], low: float, high: float) -> np.ndarray:
    """Float32 numbers between `low` and `high` that look random and depend on `name` and `shape` alone.

    Raw output of a bit generator, whose stream numpy guarantees, 16 bits a number.
    """
    count = int(np.prod(shape))
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count // 4 + 1).astype("<u8").view("<u2")[:count]
    return (low + (high - low) * ((bits + 0.5) / 65536)).astype(np.float32).reshape(shape)


def formula_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Weights for published parameter names, scaled so that activations neither vanish nor explode."""
    return {name: _formula_weight(name, shape) for name, shape in shapes.items()}


def _formula_weight(name: str, shape: Sequence[int]) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    if name.endswith("dfl.conv.weight"):
        return np.arange(16, dtype=np.float32).reshape(shape)
    if name.endswith("bn.weight"):
        return formula(name, shape, 0.7, 1.3)
    if name.endswith("bn.bias"):
        return formula(name, shape, -0.4, 0.6)
    if name.endswith("running_mean"):
        return formula(name, shape, -0.2, 0.2)
    if name.endswith("running_var"):
        return formula(name, shape, 0.6, 1.4)
    if name.endswith("bias"):
        return formula(name, shape, -2.0, 1.0)
    variance = 1.5 if name.endswith("conv.weight") else 6  # the last layers get more, so that the scores differ
    bound = (3 * variance / np.prod(shape[1:])) ** 0.5
    return formula(name, shape, -bound, bound)


def formula_state_dict(detector: Detector) -> dict[str, Tensor]:
    """The formula's weights under the names of our `detector`, for `load_state_dict`."""
    names = published_names(detector)
    weights = formula_weights({names[own]: tensor.shape for own, tensor in detector.state_dict().items()})
    return {own: torch.from_numpy(weights[published]) for own, published in names.items()}


def formula_images(name: str, batch: int, height: int, width: int) -> Tensor:
    """Images (B, 3, H, W), float 0 .. 1, whole 255ths: smooth blobs with noise on top."""
    coarse = torch.from_numpy(formula(f"{name}/coarse", (batch, 3, height // 16, width // 16), 0, 1))
    smooth = coarse.repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
    noise = torch.from_numpy(formula(f"{name}/noise", (batch, 3, height, width), 0, 1))
    return ((0.7 * smooth + 0.3 * noise) * 255).round() / 255


def numbers(file: str, prefix: str) -> dict[str, Tensor]:
    """The arrays of a kept file whose names start with `prefix/`, without it."""
    with np.load(FOLDER / file) as archive:
        chosen = {key.removeprefix(f"{prefix}/"): archive[key] for key in archive if key.startswith(f"{prefix}/")}
    assert chosen, f"{file} holds nothing under {prefix}"
    return {key: torch.from_numpy(value) for key, value in chosen.items()}


@dataclass(frozen=True)
class LossCase:
    """Raw maps, targets and what the reference package's loss says to them."""

    name: str
    maps: list[Tensor]  # raw maps (B, 64 + C, h, w) for strides 8, 16, 32; they require a gradient
    batch: Batch  # boxes (B, M, 4), xyxy pixels; labels (B, M), padded with -1
    box: float  # the components, with the default gains 7.5, 0.5 and 1.5 in them
    cls: float
    dfl: float
    total: float  # (box + cls + dfl) * B
    gradients: Tensor  # (B, 64 + C, P) of `total` with respect to the maps, levels joined, every GRADIENT_STEP-th point


GRADIENT_STEP = 5


def formula_maps(case: str, batch: int, num_classes: int, height: int, width: int, targets: np.ndarray) -> list[Tensor]:
    """Raw maps (B, 64 + C, H / stride, W / stride) of a detector that has learnt something.

    The cells of an image take turns to predict its boxes, roughly; `targets` (n, 6) is image, class, xyxy in pixels.
    """
    maps = []
    for stride in STRIDES:
        size = (height // stride, width // stride)
        boxes = formula(f"{case}/boxes/{stride}", (batch, 4, 16, *size), -1, 1)
        scores = formula(f"{case}/scores/{stride}", (batch, num_classes, *size), -9, 1)
        y, x = (np.indices(size) + 0.5) * stride
        turn = np.arange(size[0] * size[1]).reshape(size) // 3
        for image in range(batch):
            own = targets[targets[:, 0] == image, 2:]
            if len(own):
                x1, y1, x2, y2 = own[turn % len(own)].transpose(2, 0, 1)
                distances = np.stack((x - x1, y - y1, x2 - x, y2 - y))[:, None] / stride  # (4, 1, h, w)
                bins = np.arange(16).reshape(1, 16, 1, 1)
                boxes[image] += 6 * np.clip(1 - np.abs(bins - np.clip(distances, 0, 15)), 0, None)
        maps.append(torch.from_numpy(np.concatenate((boxes.reshape(batch, 64, *size), scores), axis=1)))
    return maps


def loss_case_names() -> list[str]:
    """The names of the kept loss cases."""
    with np.load(FOLDER / "losses.npz") as archive:
        return sorted({key.split("/")[0] for key in archive})


def loss_case(name: str) -> LossCase:
    """One kept loss case, its maps made anew by the formula."""
    kept = numbers("losses.npz", name)
    batch, num_classes, height, width = kept["shape"].tolist()
    targets = kept["targets"]  # (n, 6): image, class, xyxy in pixels, images in order
    counts = [int((targets[:, 0] == image).sum()) for image in range(batch)]
    most = -(-max(*counts, 1) // 8) * 8
    boxes, labels = torch.zeros(batch, most, 4), torch.full((batch, most), -1)
    for image, count in enumerate(counts):
        own = targets[targets[:, 0] == image]
        boxes[image, :count], labels[image, :count] = own[:, 2:], own[:, 1].long()
    return LossCase(
        name=name,
        maps=[
            level.requires_grad_() for level in formula_maps(name, batch, num_classes, height, width, targets.numpy())
        ],
        batch=Batch(
            images=torch.zeros(batch, 3, height, width, dtype=torch.uint8),
            boxes=boxes,
            labels=labels,
            ignore=torch.zeros(batch, most, dtype=torch.bool),
            image_ids=list(range(batch)),
            transforms=[None] * batch,
        ),
        box=float(kept["box_cls_dfl"][0]),
        cls=float(kept["box_cls_dfl"][1]),
        dfl=float(kept["box_cls_dfl"][2]),
        total=float(kept["total"]),
        gradients=kept["gradients"],
    )
