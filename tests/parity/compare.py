"""Compares this project with a reference package, side by side, for every model that both know.

It runs in an environment of its own and uses the package as a black box (its public classes are called, nothing of it
is copied). What is compared and which commands do it is in docs/parity.md, which is written here as well (`PAGE_TEXT`).
It ends with 1 if a difference is larger than the limits.
"""

import argparse
import gc
import importlib
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from reference import (
    ANCHOR_BASED_GAINS,
    Outputs,
    duplicate_targets,
    formula_images,
    padded_targets,
    random_targets,
)
from yoloyard.common.boxes import xyxy_to_cxcywh
from yoloyard.config.settings import TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.losses.branches import BranchesLoss
from yoloyard.models.detector import Detector
from yoloyard.models.weights import load_model

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
LIMITS = {"raw, evaluation": 1e-4, "raw, training": 1e-4, "decoded": 1e-4, "losses": 1e-3}
# the module beside this one that calls it, the name under which it is installed, what else its files hold
PACKAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ultralytics": ("make_reference", "ultralytics-opencv-headless", {"train_args": {"imgsz": 640}}),
    "yolov5": ("make_reference_yolov5", "yolov5", {"opt": {"imgsz": 640}, "git": None}),
}
ANCHOR_FREE_GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}
BATCH = 2


class Reference(Protocol):
    """What `make_reference.py` and `make_reference_yolov5.py` offer."""

    MODELS: tuple[str, ...]

    def reference_model(self, name: str, num_classes: int) -> nn.Module: ...

    def reference_outputs(self, model: Any, images: Tensor) -> Outputs: ...

    def reference_loss(
        self, model: Any, maps: Sequence[Tensor], targets: np.ndarray
    ) -> tuple[Tensor, dict[str, Tensor]]: ...


def loss_cases(num_classes: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Targets (n, 6) for BATCH images: image, class, xyxy in pixels."""
    counts = {"few boxes": [3, 4], "image without boxes": [4, 0], "no boxes": [0, 0], "crowded": [150, 7]}
    cases = {name: random_targets(name, count, num_classes, height, width) for name, count in counts.items()}
    return cases | {"duplicates": duplicate_targets()}


def own_outputs(detector: Detector, images: Tensor) -> Outputs:
    """What our network says to images (B, 3, H, W); it is in training mode afterwards."""

    def joined(maps: Sequence[Tensor]) -> Tensor:
        return torch.cat([level.flatten(2) for level in maps], dim=2)

    with torch.no_grad():
        maps = detector.eval()(images)
        boxes_xyxy, scores = detector.decode(maps)
        decoded = torch.cat((xyxy_to_cxcywh(boxes_xyxy), scores), dim=2).transpose(1, 2)
        return Outputs(joined(maps), joined(detector.train()(images)), decoded)


def own_losses(detector: Detector, maps: list[Tensor], targets: np.ndarray) -> dict[str, Tensor]:
    """The components of our loss, gains in them, for raw maps (B, K, h, w); of two pairs of branches, of the second."""
    head = detector.head
    criterion, own_gains = build_criterion(head, TrainConfig())
    gains = ANCHOR_BASED_GAINS if head.criterion == "anchor_based" else ANCHOR_FREE_GAINS
    parts = criterion(maps, *padded_targets(targets, BATCH))
    if isinstance(criterion, BranchesLoss):
        ones = {name: (sums[1] / criterion.shares[1], norms[1]) for name, (sums, norms) in parts.items()}
        return {name: own_gains[name] * total / norm.clamp(min=1) for name, (total, norm) in ones.items()}
    return {name: gain * (parts[name][0] / parts[name][1].clamp(min=1)).sum() for name, gain in gains.items()}


def split_levels(joined: Tensor, height: int, width: int, strides: Sequence[int]) -> list[Tensor]:
    """(B, K, P) with the levels joined to one map (B, K, h, w) a level."""
    sizes = [(height // stride, width // stride) for stride in strides]
    flat = joined.split([h * w for h, w in sizes], dim=2)
    return [level.unflatten(2, size).contiguous() for level, size in zip(flat, sizes, strict=True)]


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value; 0 if both are zero, infinite if one is no number."""
    assert actual.shape == expected.shape
    if torch.equal(actual, expected):
        return 0.0
    ratio = float((actual - expected).abs().max() / expected.abs().max())
    return ratio if math.isfinite(ratio) else math.inf


def compare_model(
    reference: Reference, name: str, num_classes: int, half: bool, extras: Mapping[str, Any]
) -> dict[str, Any]:
    """All differences of one model, its weights in a file of the reference package; one row of the results."""
    height, width = (128, 192) if name.endswith("6") else (128, 160)
    model = reference.reference_model(name, num_classes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.pt"
        torch.save({"epoch": -1, "model": model.half() if half else model, "ema": None, **extras}, path)
        detector, metadata = load_model(path)
    if (metadata["model"], detector.num_classes) != (name, num_classes):
        sys.exit(f"{name} with {num_classes} classes was read as {metadata['model']} with {detector.num_classes}.")
    model.float()
    images = formula_images(f"{name}/{num_classes}", BATCH, height, width)
    theirs, own = reference.reference_outputs(model, images), own_outputs(detector, images)
    maps = split_levels(theirs.training, height, width, detector.strides)
    losses = {}
    for case, targets in loss_cases(num_classes, height, width).items():
        _, expected = reference.reference_loss(model, maps, targets)
        actual = own_losses(detector, maps, targets)
        losses[case] = {part: relative_difference(actual[part], value) for part, value in expected.items()}
    return {
        "model": name,
        "classes": num_classes,
        "precision": "float16" if half else "float32",
        "input": [BATCH, 3, height, width],
        "raw, evaluation": relative_difference(own.evaluation, theirs.evaluation),
        "raw, training": relative_difference(own.training, theirs.training),
        "decoded": max(
            relative_difference(own.decoded[:, :4], theirs.decoded[:, :4]),
            relative_difference(own.decoded[:, 4:], theirs.decoded[:, 4:]),
        ),
        "losses": max(difference for parts in losses.values() for difference in parts.values()),
        "loss cases": losses,
    }


def compare_package(package: str, only: Sequence[str]) -> dict[str, Any]:
    """The results of all models that a package knows, or of those that are named."""
    module, distribution, extras = PACKAGES[package]
    reference: Reference = importlib.import_module(module)
    rows = []
    for name in only or reference.MODELS:
        is_nano = name.removesuffix("6").removesuffix("-p2").endswith("n")
        variants = [(80, False), (3, False), *([(80, True)] if is_nano else [])]
        for num_classes, half in variants:
            row = compare_model(reference, name, num_classes, half, extras)
            gc.collect()  # the networks hold themselves
            print(*(row[key] for key in ("model", "classes", "precision")), *(f"{row[key]:.1e}" for key in LIMITS))
            rows.append(row)
    return {"package": f"{distribution} {version(distribution)}", "torch": version("torch"), "rows": rows}


def exceeded(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each difference that is larger than its limit."""
    return [
        f"{row['model']}, {row['classes']} classes, {row['precision']}: {key} differs by {row[key]:.1e}"
        for row in rows
        for key, limit in LIMITS.items()
        if row[key] > limit
    ]


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """docs/parity.md."""
    rows = [row for result in results for row in result["rows"]]
    lines = []
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        cells = [name, " x ".join(map(str, own[0]["input"]))]
        worst = [max(row[key] for row in own) for key in LIMITS]
        lines.append(" | ".join([*cells, *(f"{figure:.0e}" if figure else "0" for figure in worst)]))
    packages = " and ".join(f"{result['package']} with torch {result['torch']}" for result in results)
    return PAGE_TEXT.format(packages=packages, rows="\n".join(f"| {line} |" for line in lines))


PAGE_TEXT = """# Agreement with the reference packages

Each model is compared with the package that it comes from, on a CPU:
{packages}.
For each model the package builds its network, a formula fills it with weights, and the package saves a `.pt` file.
yoloyard reads that file, and both networks get the same images. `tests/parity/compare.py` writes this page.

- **Raw**: the outputs of the head. In evaluation BatchNorm uses its running statistics, in training those of the batch.
- **Decoded**: the predicted boxes in pixels, and their scores. A model with objectness multiplies it with the score of
  the class.
- **Losses**: each component of the loss, from the outputs of the reference network in training. There are five sets of
  boxes: a few, an image without boxes, a batch without boxes, 150 boxes in one image, and many boxes in the same cells.
  Of YOLO26 they are those of the branches that find each object once.

Each figure is the largest difference divided by the largest value; for losses, each component is divided by itself.
The table has the worst figure of 80 and of 3 classes in float32 files, and for the smallest networks also of 80 classes
in a float16 file. 0 means equal to the last bit. The script fails above 1e-4, for losses above 1e-3.

| model | input | raw, evaluation | raw, training | decoded | losses |
| --- | --- | --- | --- | --- | --- |
{rows}

## Repeat it

Each package needs its own environment:

```
python -m venv reference-env
reference-env/bin/pip install ultralytics-opencv-headless==8.4.190 -e .
PYTHONPATH=tests reference-env/bin/python tests/parity/compare.py ultralytics.json --package ultralytics
python -m venv reference-env-yolov5
reference-env-yolov5/bin/pip install yolov5==7.0.14 "setuptools<81" -e .
PYTHONPATH=tests reference-env-yolov5/bin/python tests/parity/compare.py yolov5.json --package yolov5
PYTHONPATH=tests reference-env/bin/python tests/parity/compare.py --table ultralytics.json yolov5.json
```

yolov5 installs a build of OpenCV that needs the libraries of a display. Where they are missing, install
`opencv-python-headless` instead. The first two comparisons write all differences, the last command writes this page.

Trained networks were compared too: the imported `best.pt` and `last.pt` of the reference packages have the same COCO
mAP as the originals when one evaluator scores both. See [benchmarks](../benchmarks/README.md).

Some of the outputs of the reference packages are [kept](../tests/data/README.md). The tests compare with them on every
computer, without these packages.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON files: one to write, or those to make a page of")
    job = parser.add_mutually_exclusive_group(required=True)
    job.add_argument("--package", choices=PACKAGES, help="compare with this package")
    job.add_argument("--table", action="store_true", help=f"write {PAGE.name} from results")
    parser.add_argument("--models", nargs="*", default=[], help="only these")
    arguments = parser.parse_args()
    if arguments.package:
        if len(arguments.results) != 1:
            parser.error("one file of results is written")
        results = [compare_package(arguments.package, arguments.models)]
        arguments.results[0].write_text(json.dumps(results[0], indent=1) + "\n", encoding="utf-8")
    else:
        results = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.results]
        PAGE.write_text(page(results), encoding="utf-8")
    if lines := exceeded([row for result in results for row in result["rows"]]):
        sys.exit("\n".join(["Differences larger than the limits:", *lines]))


if __name__ == "__main__":
    main()
