"""Makes the numbers in tests/data/reference: what the reference package computes for formula weights and inputs.

It runs in an environment of its own and uses the package as a black box (its public classes are called, nothing of it
is copied):

    python -m venv reference-env
    reference-env/bin/pip install ultralytics-opencv-headless==8.4.190 -e .
    PYTHONPATH=tests reference-env/bin/python tests/parity/make_reference.py

What is kept, and how to read it, stands in tests/data/README.md.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import ultralytics
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from reference import FOLDER, GRADIENT_STEP, STRIDES, formula, formula_images, formula_maps, formula_weights

SIZES = "nsmlx"
FAMILIES = ("yolov8", "yolo11")
POINT_STEP = 7  # kept outputs: every 7th anchor point


def reference_model(name: str, num_classes: int) -> DetectionModel:
    """The reference package's model with formula weights and default loss gains, in training mode."""
    model = DetectionModel(f"{name}.yaml", nc=num_classes, verbose=False)
    model.args = DEFAULT_CFG
    state = model.state_dict()
    weights = formula_weights({key: tensor.shape for key, tensor in state.items()})
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return model.train()


def raw(outputs: dict[str, Tensor]) -> np.ndarray:
    """Raw outputs as (B, 64 + C, P), every POINT_STEP-th point."""
    joined = torch.cat((outputs["boxes"], outputs["scores"]), dim=1)
    return joined[..., ::POINT_STEP].detach().numpy()


def model_numbers(name: str, num_classes: int, batch: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Outputs of one model for one formula image batch."""
    model = reference_model(name, num_classes)
    images = formula_images(f"{name}/{num_classes}", batch, height, width)
    with torch.no_grad():
        model.eval()
        decoded, eval_outputs = model(images)
        model.train()
        train_outputs = model(images)
    return {
        "shape": np.array([batch, num_classes, height, width]),
        "parameters": np.array(sum(parameter.numel() for parameter in model.parameters())),
        "eval": raw(eval_outputs),
        "train": raw(train_outputs),
        "decoded": decoded[..., ::POINT_STEP].numpy(),  # (B, 4 + C, P): cxcywh in pixels, then scores
    }


def random_targets(case: str, counts: list[int], num_classes: int, height: int, width: int) -> np.ndarray:
    """(n, 6) image, class, xyxy in pixels, of formula boxes from 4 pixels to most of the image."""
    rows = []
    for image, count in enumerate(counts):
        centres = formula(f"{case}/centres/{image}", (count, 2), 0.05, 0.95) * [width, height]
        sizes = 4 * (0.7 * min(height, width) / 4) ** formula(f"{case}/sizes/{image}", (count, 2), 0, 1)
        classes = np.floor(formula(f"{case}/classes/{image}", (count, 1), 0, num_classes))
        corners = np.concatenate((centres - sizes / 2, centres + sizes / 2), axis=1)
        rows.append(np.concatenate((np.full((count, 1), image), classes, corners), axis=1))
    return np.concatenate(rows).astype(np.float32)


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
    }
    cases = {
        name: (shape, random_targets(name, counts, *shape[1:])) for name, (shape, counts) in shapes_and_counts.items()
    }
    return cases | {"edges": ((2, 3, 96, 160), EDGE_TARGETS)}


def reference_loss(model: DetectionModel, maps: list[Tensor], targets: np.ndarray) -> tuple[Tensor, Tensor]:
    """The total loss and the three components (box, cls, dfl) for raw maps of the strides 8, 16, 32."""
    height, width = maps[0].shape[2] * STRIDES[0], maps[0].shape[3] * STRIDES[0]
    rows = torch.from_numpy(targets).reshape(-1, 6)
    corners, size = rows[:, 2:], torch.tensor([width, height], dtype=torch.float32)
    batch = {
        "img": torch.zeros(len(maps[0]), 3, height, width),
        "batch_idx": rows[:, 0],
        "cls": rows[:, 1:2],
        "bboxes": torch.cat(
            ((corners[:, :2] + corners[:, 2:]) / 2 / size, (corners[:, 2:] - corners[:, :2]) / size), 1
        ),
    }
    joined = torch.cat([level.flatten(2) for level in maps], dim=2)
    outputs = {"boxes": joined[:, :64], "scores": joined[:, 64:], "feats": maps}
    losses, components = model.loss(batch, outputs)
    return losses.sum(), torch.stack([components[key] for key in ("box_loss", "cls_loss", "dfl_loss")])


def loss_numbers(name: str, shape: tuple[int, int, int, int], targets: np.ndarray) -> dict[str, np.ndarray]:
    """One loss case, as tests/reference.py reads it."""
    maps = [level.requires_grad_() for level in formula_maps(name, *shape, targets)]
    total, components = reference_loss(reference_model("yolov8n", shape[1]), maps, targets)
    total.backward()
    gradients = torch.cat([level.grad.flatten(2) for level in maps if level.grad is not None], dim=2)
    return {
        "shape": np.array(shape),
        "targets": targets,
        "box_cls_dfl": components.detach().numpy(),
        "total": total.detach().numpy(),
        "gradients": gradients[..., ::GRADIENT_STEP].numpy(),
    }


def save(path: Path, groups: dict[str, dict[str, np.ndarray]]) -> None:
    """One compressed file, entries named group/key."""
    arrays = {f"{group}/{key}": value for group, entries in groups.items() for key, value in entries.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    print(f"ultralytics {ultralytics.__version__}, torch {torch.__version__}")
    models = {
        f"{family}{size}": model_numbers(f"{family}{size}", 80, 1, 64, 96) for family in FAMILIES for size in SIZES
    }
    models |= {f"{family}n_3": model_numbers(f"{family}n", 3, 2, 128, 160) for family in FAMILIES}
    save(folder / "models.npz", models)
    save(folder / "losses.npz", {name: loss_numbers(name, *case) for name, case in loss_cases().items()})


if __name__ == "__main__":
    main()
