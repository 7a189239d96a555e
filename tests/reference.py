"""The kept reference numbers (tests/data/reference) and the formula that fills weights and inputs.

Numbers made by the formula are not kept: they follow from a name and a shape alone, on every machine and numpy.
The scripts in `tests/parity` use the same formula to ask the reference packages for the expected outputs.

Shapes: B batch, M boxes per image (padded), C classes, P anchor points or cells, L levels, A anchors a cell.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from yoloyard.common.structures import Batch
from yoloyard.models.detector import Detector
from yoloyard.models.importing.importers import published_names

FOLDER = Path(__file__).parent / "data" / "reference"
STRIDES = (8, 16, 32)
P2_STRIDES = (4, 8, 16, 32)
ANCHORS = {  # by the number of levels: published anchors, width and height in pixels, three a level
    3: (
        ((10, 13), (16, 30), (33, 23)),
        ((30, 61), (62, 45), (59, 119)),
        ((116, 90), (156, 198), (373, 326)),
    ),
    4: (
        ((19, 27), (44, 40), (38, 94)),
        ((96, 68), (86, 152), (180, 137)),
        ((140, 301), (303, 264), (238, 542)),
        ((436, 615), (739, 380), (925, 792)),
    ),
}


def formula(name: str, shape: Sequence[int], low: float, high: float) -> np.ndarray:
    """Float32 numbers between `low` and `high` that look random and depend on `name` and `shape` alone.

    Raw output of a bit generator, whose stream numpy guarantees, 16 bits a number.
    """
    count = int(np.prod(shape))
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count // 4 + 1).astype("<u8").view("<u2")[:count]
    return (low + (high - low) * ((bits + 0.5) / 65536)).astype(np.float32).reshape(shape)


def level_strides(levels: int) -> np.ndarray:
    """Pixels of a cell (L,), ascending from 8."""
    return 8 * 2 ** np.arange(levels)


def anchor_pixels(levels: int) -> np.ndarray:
    """The published anchors (L, A, 2) of a network with so many levels, width and height in pixels."""
    return np.array(ANCHORS[levels], dtype=np.float32)


def formula_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Weights for published parameter names, scaled so that activations neither vanish nor explode.

    Anchors are the published ones, in cells, as files hold them.
    """
    return {name: _formula_weight(name, shape) for name, shape in shapes.items()}


def _formula_weight(name: str, shape: Sequence[int]) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    if name.endswith("dfl.conv.weight"):
        return np.arange(16, dtype=np.float32).reshape(shape)
    if name.endswith("anchors"):
        return (anchor_pixels(shape[0]) / level_strides(shape[0]).reshape(-1, 1, 1)).astype(np.float32)
    if name.endswith(("gamma", "gate")):
        return formula(name, shape, 0.2, 1.0)
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
    variance = 1.5 if name.endswith(("conv.weight", "pw.weight")) else 6  # the last layers get more, so scores differ
    if name.endswith("dw.weight") or ".hgnn." in name:  # of YOLOv13: without a normalisation behind them
        variance = 1
    if re.search(r"\.m\.\d\.\d\.(attn|mlp)\.", name):  # of YOLO12: many additions in a row
        variance = 0.5
    bound = (3 * variance / np.prod(shape[1:])) ** 0.5
    return formula(name, shape, -bound, bound)


def formula_state_dict(detector: Detector) -> dict[str, Tensor]:
    """The formula's weights under the names of our `detector`, for `load_state_dict`."""
    names = published_names(detector)
    weights = formula_weights({names[own]: tensor.shape for own, tensor in detector.state_dict().items()})
    state = {own: torch.from_numpy(weights[names[own]]) for own in detector.state_dict()}
    return {own: torch.from_numpy(anchor_pixels(len(t))) if own.endswith("anchors") else t for own, t in state.items()}


def formula_images(name: str, batch: int, height: int, width: int) -> Tensor:
    """Images (B, 3, H, W), float 0 .. 1, whole 255ths: smooth blobs with noise on top."""
    coarse = torch.from_numpy(formula(f"{name}/coarse", (batch, 3, height // 16, width // 16), 0, 1))
    smooth = coarse.repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
    noise = torch.from_numpy(formula(f"{name}/noise", (batch, 3, height, width), 0, 1))
    return ((0.7 * smooth + 0.3 * noise) * 255).round() / 255


def random_targets(case: str, counts: Sequence[int], num_classes: int, height: int, width: int) -> np.ndarray:
    """(n, 6) image, class, xyxy in pixels, of formula boxes from 4 pixels to most of the image."""
    rows = []
    for image, count in enumerate(counts):
        centres = formula(f"{case}/centres/{image}", (count, 2), 0.05, 0.95) * [width, height]
        sizes = 4 * (0.7 * min(height, width) / 4) ** formula(f"{case}/sizes/{image}", (count, 2), 0, 1)
        classes = np.floor(formula(f"{case}/classes/{image}", (count, 1), 0, num_classes))
        corners = np.concatenate((centres - sizes / 2, centres + sizes / 2), axis=1)
        rows.append(np.concatenate((np.full((count, 1), image), classes, corners), axis=1))
    return np.concatenate(rows).astype(np.float32)


def duplicate_targets() -> np.ndarray:
    """(n, 6) image, class, xyxy in pixels: boxes of similar sizes whose centres share four cells of stride 8."""
    centres = np.array([64, 40]) + formula("duplicates/centres", (16, 2), 0, 16)
    sizes = formula("duplicates/sizes", (16, 2), 20, 50)
    numbers = np.arange(16).reshape(-1, 1)
    return np.concatenate(
        (numbers // 8, numbers % 3, centres - sizes / 2, centres + sizes / 2), axis=1, dtype=np.float32
    )


def normalised_targets(targets: np.ndarray, height: int, width: int) -> Tensor:
    """(n, 6) image, class, xyxy in pixels to image, class, centre and size in 0 .. 1, as the reference packages want.

    The corners become centre and size in float32; one that is on an edge of a cell stays there in images whose sides
    are powers of two.
    """
    rows = torch.from_numpy(targets).reshape(-1, 6)
    corners, size = rows[:, 2:], torch.tensor([width, height], dtype=torch.float32)
    centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    return torch.cat((rows[:, :2], centres / size, sizes / size), dim=1)


def padded_targets(targets: np.ndarray, batch: int) -> tuple[Tensor, Tensor]:
    """(n, 6) image, class, xyxy in pixels, images in order, to boxes (B, M, 4) and labels (B, M), padded with -1."""
    counts = [int((targets[:, 0] == image).sum()) for image in range(batch)]
    most = -(-max(*counts, 1) // 8) * 8
    boxes, labels = torch.zeros(batch, most, 4), torch.full((batch, most), -1)
    for image, count in enumerate(counts):
        own = torch.from_numpy(targets[targets[:, 0] == image])
        boxes[image, :count], labels[image, :count] = own[:, 2:], own[:, 1].long()
    return boxes, labels


@dataclass(frozen=True)
class Outputs:
    """What one network says to one batch of images."""

    evaluation: Tensor  # raw outputs (B, channels, P), levels joined, with running statistics
    training: Tensor  # the same with the statistics of the batch
    decoded: Tensor  # (B, 4 + C, P): centre-x, centre-y, width, height in pixels, then scores

    def kept(self) -> dict[str, np.ndarray]:
        """Every POINT_STEP-th point of all of them."""
        entries = {"eval": self.evaluation, "train": self.training, "decoded": self.decoded}
        return {key: value[..., ::POINT_STEP].numpy() for key, value in entries.items()}


POINT_STEP = 7


def save_numbers(path: Path, groups: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """One compressed file, entries named group/key, for `numbers`."""
    arrays = {f"{group}/{key}": value for group, entries in groups.items() for key, value in entries.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size / 1e6:.2f} MB")


def model_file(name: str) -> str:
    """The kept file that holds outputs of the model `name`."""
    if name.startswith("yolov13") or name.endswith("-p2"):
        return "p2.npz" if name.endswith("-p2") else "yolov13.npz"
    return {"yolo12": "yolo12.npz", "yolo26": "yolo26.npz", "yolov5": "yolov5.npz"}.get(name[:6], "models.npz")


def batch_of(name: str) -> int:
    """How many images the kept outputs with 3 classes are of."""
    return 1 if name.endswith("-p2") else 2


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
    strides: tuple[int, ...]
    maps: list[Tensor]  # raw maps (B, 64 + C, h, w), one a stride; they require a gradient
    batch: Batch  # boxes (B, M, 4), xyxy pixels; labels (B, M), padded with -1
    box: float  # the components, with the default gains 7.5, 0.5 and 1.5 in them
    cls: float
    dfl: float
    total: float  # (box + cls + dfl) * B
    gradients: Tensor  # (B, 64 + C, P) of `total` with respect to the maps, levels joined, every GRADIENT_STEP-th point


GRADIENT_STEP = 5


def formula_maps(
    case: str,
    batch: int,
    num_classes: int,
    height: int,
    width: int,
    targets: np.ndarray,
    strides: Sequence[int] = STRIDES,
) -> list[Tensor]:
    """Raw maps (B, 64 + C, H / stride, W / stride) of a detector that has learned something.

    The cells of an image take turns to predict its boxes, roughly; `targets` (n, 6) is image, class, xyxy in pixels.
    """
    maps = []
    for stride in strides:
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


def loss_strides(name: str) -> tuple[int, ...]:
    """Pixels of a cell of each level of a kept loss case."""
    return P2_STRIDES if name == "four_levels" else STRIDES


def loss_case_names() -> list[str]:
    """The names of the kept loss cases."""
    with np.load(FOLDER / "losses.npz") as archive:
        return sorted({key.split("/")[0] for key in archive})


def loss_case(name: str) -> LossCase:
    """One kept loss case, its maps made again by the formula."""
    kept = numbers("losses.npz", name)
    batch, num_classes, height, width = kept["shape"].tolist()
    targets = kept["targets"].numpy()  # (n, 6): image, class, xyxy in pixels, images in order
    boxes, labels = padded_targets(targets, batch)
    strides = loss_strides(name)
    maps = formula_maps(name, batch, num_classes, height, width, targets, strides)
    return LossCase(
        name=name,
        strides=strides,
        maps=[level.requires_grad_() for level in maps],
        batch=Batch(
            images=torch.zeros(batch, 3, height, width, dtype=torch.uint8),
            boxes=boxes,
            labels=labels,
            ignore=torch.zeros_like(labels, dtype=torch.bool),
            image_ids=list(range(batch)),
            transforms=[None] * batch,
        ),
        box=float(kept["box_cls_dfl"][0]),
        cls=float(kept["box_cls_dfl"][1]),
        dfl=float(kept["box_cls_dfl"][2]),
        total=float(kept["total"]),
        gradients=kept["gradients"],
    )


@dataclass(frozen=True)
class AnchorBasedLossCase:
    """Raw maps of an anchor-based network, targets and what the reference package's loss says to them."""

    name: str
    num_classes: int
    strides: tuple[int, ...]  # (L,)
    anchors: Tensor  # (L, A, 2) width and height in pixels
    options: dict[str, float]  # of the loss: anchor_t, label_smoothing, cls_pw, obj_pw
    maps: list[Tensor]  # raw maps (B, A * (5 + C), h, w), one a level; they require a gradient
    boxes: Tensor  # (B, M, 4) xyxy in pixels
    labels: Tensor  # (B, M), padded with -1
    losses: dict[str, float]  # box, obj and cls, with the gains ANCHOR_BASED_GAINS in them
    total: float  # (box + obj + cls) * B
    gradients: Tensor  # (B, A * (5 + C), P) of `total` with respect to the maps, levels joined


ANCHOR_BASED_GAINS = {"box": 0.05, "obj": 1.0, "cls": 0.5}
ANCHOR_BASED_OPTIONS = {"anchor_t": 4.0, "label_smoothing": 0.0, "cls_pw": 1.0, "obj_pw": 1.0}


def formula_anchor_maps(
    case: str, batch: int, num_classes: int, height: int, width: int, levels: int, targets: np.ndarray
) -> list[Tensor]:
    """Raw maps (B, A * (5 + C), H / stride, W / stride) of an anchor-based detector that has learned something.

    Each cell predicts, roughly and as far as its reach goes, the box whose centre is nearest; `targets` (n, 6) is
    image, class, xyxy in pixels.
    """
    maps = []
    for stride, anchors in zip(level_strides(levels), anchor_pixels(levels), strict=True):
        size = (height // stride, width // stride)
        boxes = formula(f"{case}/anchor boxes/{stride}", (batch, len(anchors), 4, *size), -0.5, 0.5)
        objectness = formula(f"{case}/objectness/{stride}", (batch, len(anchors), 1, *size), -7, 2)
        classes = formula(f"{case}/anchor classes/{stride}", (batch, len(anchors), num_classes, *size), -6, 3)
        cells = np.indices(size)[::-1].astype(np.float64)  # (2, h, w): column, row
        for image in range(batch):
            own = targets[targets[:, 0] == image, 2:].astype(np.float64)
            if len(own):
                centres, sizes = (own[:, :2] + own[:, 2:]) / 2 / stride, own[:, 2:] - own[:, :2]
                distances = np.hypot(*(centres.T.reshape(2, -1, 1, 1) - cells.reshape(2, 1, *size) - 0.5))
                nearest = distances.argmin(axis=0)  # (h, w)
                offsets = (centres[nearest].transpose(2, 0, 1) - cells + 0.5) / 2  # (2, h, w)
                scales = np.sqrt(sizes[nearest].transpose(2, 0, 1) / anchors.reshape(-1, 2, 1, 1)) / 2  # (A, 2, h, w)
                boxes[image] += _logit(np.concatenate((np.broadcast_to(offsets, scales.shape), scales), axis=1))
        joined = np.concatenate((boxes, objectness, classes), axis=2)
        maps.append(torch.from_numpy(joined.reshape(batch, -1, *size)))
    return maps


def _logit(probabilities: np.ndarray) -> np.ndarray:
    clipped = np.clip(probabilities, 0.02, 0.98)
    return np.log(clipped / (1 - clipped)).astype(np.float32)


def anchor_based_loss_case_names() -> list[str]:
    """The names of the kept anchor-based loss cases."""
    with np.load(FOLDER / "yolov5_losses.npz") as archive:
        return sorted({key.split("/")[0] for key in archive})


def anchor_based_loss_case(name: str) -> AnchorBasedLossCase:
    """One kept anchor-based loss case, its maps made again by the formula."""
    kept = numbers("yolov5_losses.npz", name)
    batch, num_classes, height, width, levels = kept["shape"].tolist()
    targets = kept["targets"].numpy()
    maps = formula_anchor_maps(name, batch, num_classes, height, width, levels, targets)
    boxes, labels = padded_targets(targets, batch)
    return AnchorBasedLossCase(
        name=name,
        num_classes=num_classes,
        strides=tuple(level_strides(levels).tolist()),
        anchors=torch.from_numpy(anchor_pixels(levels)),
        options=dict(zip(ANCHOR_BASED_OPTIONS, kept["options"].tolist(), strict=True)),
        maps=[level.requires_grad_() for level in maps],
        boxes=boxes,
        labels=labels,
        losses=dict(zip(ANCHOR_BASED_GAINS, kept["box_obj_cls"].tolist(), strict=True)),
        total=float(kept["total"]),
        gradients=kept["gradients"],
    )
