"""Makes the numbers in tests/data/reference: what the reference package computes for formula weights and inputs.

It runs in an environment of its own and uses the package as a black box (its public classes are called, nothing of it
is copied):

    python -m venv reference-env
    reference-env/bin/pip install ultralytics-opencv-headless==8.4.190 -e .
    PYTHONPATH=tests reference-env/bin/python tests/parity/make_reference.py

What is kept, and how to read it, stands in tests/data/README.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ultralytics
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from reference import (
    FOLDER,
    GRADIENT_STEP,
    P2_STRIDES,
    Outputs,
    batch_of,
    formula_images,
    formula_maps,
    formula_weights,
    loss_strides,
    model_file,
    normalised_targets,
    random_targets,
    save_numbers,
)

SIZES = "nsmlx"
FAMILIES = ("yolov8", "yolo11", "yolo12", "yolo26")
WITH_P2 = tuple(f"yolov8{size}-p2" for size in SIZES)  # there is no YOLO11 with four levels
MODELS = (*(f"{family}{size}" for family in FAMILIES for size in SIZES), *WITH_P2)


def reference_model(name: str, num_classes: int) -> DetectionModel:
    """The reference package's model with formula weights and default loss gains, in training mode."""
    model = DetectionModel(f"{name}.yaml", nc=num_classes, verbose=False)
    model.args = DEFAULT_CFG
    state = model.state_dict()
    weights = formula_weights({key: tensor.shape for key, tensor in state.items()})
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return model.train()


def reference_outputs(model: DetectionModel, images: Tensor) -> Outputs:
    """What the model says to images (B, 3, H, W); it is in training mode afterwards."""

    def joined(outputs: dict[str, Any]) -> Tensor:
        pairs = [outputs["one2many"], outputs["one2one"]] if "one2many" in outputs else [outputs]
        return torch.cat([pair[part] for pair in pairs for part in ("boxes", "scores")], dim=1)

    with torch.no_grad():
        decoded, evaluation = model.eval()(images)
        return Outputs(joined(evaluation), joined(model.train()(images)), decoded)


def model_numbers(name: str, num_classes: int, batch: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Outputs of one model for one formula image batch."""
    model = reference_model(name, num_classes)
    images = formula_images(f"{name}/{num_classes}", batch, height, width)
    outputs = reference_outputs(model, images)
    numbers = {
        "shape": np.array([batch, num_classes, height, width]),
        "parameters": np.array(sum(parameter.numel() for parameter in model.parameters())),
        **outputs.kept(),
    }
    if name.startswith("yolo26") and num_classes == 80:
        return {key: numbers[key] for key in ("shape", "parameters", "eval")}  # of two pairs of branches
    return numbers | ({"end2end": end_to_end(name, num_classes, images)} if name.startswith("yolo26") else {})


def end_to_end(name: str, num_classes: int, images: Tensor) -> np.ndarray:
    """(B, k, 6) of the one-to-one branches in a network that was fused for inference: xyxy in pixels, score, class."""
    model = reference_model(name, num_classes).eval()
    model.end2end = True
    with torch.no_grad():
        selected, *_ = model.fuse(verbose=False)(images)
    return selected.numpy()


EDGE_TARGETS = np.array(
    [
        [0, 0, 37.3, 21.7, 61.9, 44.2],  # two boxes on the same cells, of different classes
        [0, 1, 37.3, 21.7, 61.9, 44.2],
        [0, 1, 38.1, 22.4, 60.8, 43.5],
        [0, 2, 100.4, 50.2, 101.4, 51.2],  # one pixel
        [0, 2, 140.3, 70.6, 171.9, 99.8],  # partly outside
        [1, 0, -20.5, -12.3, 180.7, 108.9],  # larger than the image
        [1, 1, 70.2, 3.1, 73.3, 90.4],  # thin and tall
        [1, 2, 5.3, 40.7, 150.9, 43.2],  # wide and flat
        [1, 2, 63.7, 31.2, 64.9, 60.3],
    ],
    dtype=np.float32,
)


def loss_cases() -> dict[str, tuple[tuple[int, int, int, int], np.ndarray]]:
    """(batch, classes, height, width) and targets of every kept case."""
    shapes_and_counts = {
        "few_boxes": ((2, 3, 96, 160), [3, 4]),
        "eighty_classes": ((2, 80, 128, 96), [6, 2]),
        "one_class": ((2, 1, 64, 64), [5, 5]),
        "image_without_boxes": ((3, 3, 96, 160), [4, 0, 2]),
        "no_boxes": ((2, 3, 96, 160), [0, 0]),
        "crowded": ((2, 5, 160, 128), [150, 7]),
        "four_levels": ((1, 2, 64, 96), [12]),
    }
    cases = {
        name: (shape, random_targets(name, counts, *shape[1:])) for name, (shape, counts) in shapes_and_counts.items()
    }
    return cases | {"edges": ((2, 3, 96, 160), EDGE_TARGETS)}


def reference_loss(
    model: DetectionModel, maps: Sequence[Tensor], targets: np.ndarray
) -> tuple[Tensor, dict[str, Tensor]]:
    """The total loss and the components for raw maps (B, outputs, h, w), the finest first.

    Of two pairs of branches the components are those of the one-to-one branches.
    """
    stride = int(model.stride[0])
    height, width = maps[0].shape[2] * stride, maps[0].shape[3] * stride
    rows = normalised_targets(targets, height, width)
    batch = {
        "img": torch.zeros(len(maps[0]), 3, height, width),
        "batch_idx": rows[:, 0],
        "cls": rows[:, 1:2],
        "bboxes": rows[:, 2:],
    }

    def outputs(levels: Sequence[Tensor]) -> dict[str, Any]:
        boxes, scores = torch.cat([level.flatten(2) for level in levels], dim=2).split(
            (sides, model.model[-1].nc), dim=1
        )
        return {"boxes": boxes, "scores": scores, "feats": list(levels)}

    sides = 4 * model.model[-1].reg_max
    if maps[0].shape[1] == sides + model.model[-1].nc:
        losses, components = model.loss(batch, outputs(maps))
    else:
        many, one = zip(*(level.chunk(2, dim=1) for level in maps), strict=True)
        losses, components = model.loss(batch, {"one2many": outputs(many), "one2one": outputs(one)})
    return losses.sum(), {name.removesuffix("_loss"): value for name, value in components.items()}


def loss_numbers(name: str, shape: tuple[int, int, int, int], targets: np.ndarray) -> dict[str, np.ndarray]:
    """One loss case, as tests/reference.py reads it."""
    strides = loss_strides(name)
    maps = [level.requires_grad_() for level in formula_maps(name, *shape, targets, strides)]
    model = "yolov8n-p2" if strides == P2_STRIDES else "yolov8n"
    total, components = reference_loss(reference_model(model, shape[1]), maps, targets)
    total.backward()
    gradients = torch.cat([level.grad.flatten(2) for level in maps if level.grad is not None], dim=2)
    return {
        "shape": np.array(shape),
        "targets": targets,
        "box_cls_dfl": torch.stack(list(components.values())).detach().numpy(),
        "total": total.detach().numpy(),
        "gradients": gradients[..., ::GRADIENT_STEP].numpy(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    print(f"ultralytics {ultralytics.__version__}, torch {torch.__version__}")
    for file in sorted({model_file(name) for name in MODELS}):
        names = [name for name in MODELS if model_file(name) == file and name not in WITH_P2[1:]]
        models = {name: model_numbers(name, 80, 1, 64, 96) for name in names}
        nano = [name for name in names if name.removesuffix("-p2").endswith("n")]
        models |= {f"{name}_3": model_numbers(name, 3, batch_of(name), 128, 160) for name in nano}
        save_numbers(folder / file, models)
    save_numbers(folder / "losses.npz", {name: loss_numbers(name, *case) for name, case in loss_cases().items()})


if __name__ == "__main__":
    main()
