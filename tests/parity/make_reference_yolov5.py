"""Makes the YOLOv5 numbers in tests/data/reference: what the reference package computes for formula weights and inputs.

It runs in an environment of its own and uses the package as a black box (its public classes are called, nothing of it
is copied):

    python -m venv reference-env-yolov5
    reference-env-yolov5/bin/pip install yolov5==7.0.14 "setuptools<81" -e .
    PYTHONPATH=tests reference-env-yolov5/bin/python tests/parity/make_reference_yolov5.py

What is kept, and how to read it, stands in tests/data/README.md.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import yolov5
from torch import Tensor
from yolov5.models.yolo import DetectionModel
from yolov5.utils.loss import ComputeLoss

from reference import (
    ANCHOR_BASED_GAINS,
    ANCHOR_BASED_OPTIONS,
    FOLDER,
    Outputs,
    anchor_pixels,
    duplicate_targets,
    formula_anchor_maps,
    formula_images,
    formula_weights,
    level_strides,
    normalised_targets,
    random_targets,
    save_numbers,
)

MODELS = tuple(f"yolov5{size}{levels}" for levels in ("", "6") for size in "nsmlx")

logging.disable(logging.INFO)  # the package prints every network that it builds


def reference_model(name: str, num_classes: int) -> DetectionModel:
    """The reference package's model with formula weights and its own anchors, in training mode."""
    description = f"models/hub/{name}.yaml" if name.endswith("6") else f"models/{name}.yaml"
    model = DetectionModel(str(Path(yolov5.__file__).parent / description), nc=num_classes)
    state = model.state_dict()
    weights = formula_weights({key: tensor.shape for key, tensor in state.items()})
    for key, tensor in state.items():  # the formula has the published anchors
        assert not key.endswith("anchors") or np.array_equal(tensor.numpy(), weights[key]), f"other anchors in {name}"
    assert model.stride.tolist() == level_strides(len(model.stride)).tolist()
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return model.train()


def reference_outputs(model: DetectionModel, images: Tensor) -> Outputs:
    """What the model says to images (B, 3, H, W); it is in training mode afterwards."""

    def joined(maps: Sequence[Tensor]) -> Tensor:  # (B, A, h, w, 5 + C) each
        return torch.cat([level.permute(0, 1, 4, 2, 3).flatten(3).flatten(1, 2) for level in maps], dim=2)

    with torch.no_grad():
        decoded, evaluation = model.eval()(images)
        boxes, objectness, classes = decoded.transpose(1, 2).split((4, 1, decoded.shape[2] - 5), dim=1)
        scores = torch.cat((boxes, objectness * classes), dim=1)
        return Outputs(joined(evaluation), joined(model.train()(images)), scores)


def model_numbers(name: str, num_classes: int, batch: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Outputs of one model for one formula image batch; all of them for the few with 3 classes, else the raw ones."""
    model = reference_model(name, num_classes)
    kept = reference_outputs(model, formula_images(f"{name}/{num_classes}", batch, height, width)).kept()
    return {
        "shape": np.array([batch, num_classes, height, width]),
        "parameters": np.array(sum(parameter.numel() for parameter in model.parameters())),
        **({"eval": kept["eval"]} if num_classes == 80 else kept),
    }


# On an image of 256 x 128 (width x height) all of these are exact in float32, and so are the edges that they touch.
EDGE_TARGETS = np.array(
    [
        [0, 0, 44, 12, 84, 52],  # the centre on the corner of four cells of every level
        [0, 1, 44, 12, 84, 52],  # the same box, of another class
        [0, 2, 48, 16, 88, 56],  # the centre in the middle of a cell of stride 8
        [0, 2, 52, 20, 92, 60],  # the centre half-way at stride 16
        [0, 1, 100, 60, 140, 80],  # four times as wide as an anchor: just too much
        [0, 1, 150, 60, 189, 80],  # a little less
        [0, 0, 20, 100, 20, 100],  # nothing
        [0, 0, 200, 100, 201, 101],  # one pixel
        [1, 0, 236, 80, 276, 120],  # the centre on the right border
        [1, 1, 80, 108, 120, 148],  # on the lower border
        [1, 2, 240, 112, 272, 144],  # on the lower right corner
        [1, 2, -20, -10, 28, 22],  # the centre in the first cell, where there are no neighbours
        [1, 0, 0, 0, 256, 128],  # the whole image
        [1, 1, 70, 3, 73, 110],  # thin and tall
        [1, 2, 5, 40, 250, 43],  # wide and flat
        [1, 2, 30, 50, 50, 90],
    ],
    dtype=np.float32,
)


LARGE_TARGETS = np.array(  # for the anchors of strides 32 and 64, as far as an image of 384 x 512 goes
    [
        [0, 0, 3.2, 5.1, 380.4, 500.3],
        [0, 1, 120.7, 40.2, 370.9, 300.8],
        [0, 2, 10.3, 200.4, 200.6, 480.7],
        [0, 0, 30.6, 100.2, 370.1, 300.5],
        [0, 1, 250.4, 300.9, 330.2, 340.3],
    ],
    dtype=np.float32,
)


def loss_cases() -> dict[str, tuple[tuple[int, int, int, int, int], np.ndarray, dict[str, float]]]:
    """(batch, classes, height, width, levels), targets and other options than the published of every kept case."""
    shapes_and_counts = {
        "few_boxes": ((2, 3, 96, 160, 3), [3, 4]),
        "eighty_classes": ((2, 80, 128, 96, 3), [6, 2]),
        "one_class": ((2, 1, 64, 64, 3), [5, 5]),
        "image_without_boxes": ((3, 3, 96, 160, 3), [4, 0, 2]),
        "no_boxes": ((2, 3, 96, 160, 3), [0, 0]),
        "crowded": ((2, 5, 160, 128, 3), [150, 7]),
        "four_levels": ((2, 3, 384, 256, 4), [12, 3]),
        "other_options": ((2, 3, 96, 160, 3), [8, 9]),
    }
    options = {"other_options": {"anchor_t": 3.4, "label_smoothing": 0.1, "cls_pw": 0.5, "obj_pw": 0.7}}
    cases = {
        name: (shape, random_targets(name, counts, *shape[1:4]), options.get(name, {}))
        for name, (shape, counts) in shapes_and_counts.items()
    }
    return cases | {
        "edges": ((2, 3, 128, 256, 3), EDGE_TARGETS, {}),
        "duplicates": ((2, 3, 96, 160, 3), duplicate_targets(), {}),
        "no_boxes_four_levels": ((1, 3, 64, 128, 4), np.zeros((0, 6), dtype=np.float32), {}),
        "large_boxes": ((1, 3, 512, 384, 4), LARGE_TARGETS, {}),
    }


def reference_loss(
    model: DetectionModel, maps: Sequence[Tensor], targets: np.ndarray, options: Mapping[str, float] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The total loss and the components for raw maps (B, A * (5 + C), h, w)."""
    height, width = maps[0].shape[2] * 8, maps[0].shape[3] * 8
    model.hyp = {**ANCHOR_BASED_GAINS, **ANCHOR_BASED_OPTIONS, "fl_gamma": 0.0, **(options or {})}
    anchors = anchor_pixels(len(maps)).shape[1]
    split = [level.unflatten(1, (anchors, -1)).permute(0, 1, 3, 4, 2).contiguous() for level in maps]
    total, components = ComputeLoss(model)(split, normalised_targets(targets, height, width))
    return total.sum(), dict(zip(("box", "obj", "cls"), components, strict=True))


def loss_numbers(
    name: str, shape: tuple[int, int, int, int, int], targets: np.ndarray, options: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """One loss case, as tests/reference.py reads it."""
    maps = [level.requires_grad_() for level in formula_anchor_maps(name, *shape, targets)]
    model = reference_model("yolov5n" if len(maps) == 3 else "yolov5n6", shape[1])
    total, components = reference_loss(model, maps, targets, options)
    total.backward()
    return {
        "shape": np.array(shape),
        "options": np.array(list((ANCHOR_BASED_OPTIONS | dict(options)).values())),
        "targets": targets,
        "box_obj_cls": torch.stack(list(components.values())).detach().numpy(),
        "total": total.detach().numpy(),
        "gradients": torch.cat([level.grad.flatten(2) for level in maps if level.grad is not None], dim=2).numpy(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    print(f"yolov5 {yolov5.__version__}, torch {torch.__version__}")
    models = {name: model_numbers(name, 80, 1, 64, 128 if name.endswith("6") else 96) for name in MODELS}
    models["yolov5n_3"] = model_numbers("yolov5n", 3, 2, 128, 160)
    models["yolov5n6_3"] = model_numbers("yolov5n6", 3, 2, 128, 192)
    save_numbers(folder / "yolov5.npz", models)
    save_numbers(folder / "yolov5_losses.npz", {name: loss_numbers(name, *case) for name, case in loss_cases().items()})


if __name__ == "__main__":
    main()
