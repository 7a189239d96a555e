"""The model card, a page of Markdown beside the best weights: data, figures, settings, licence, how to use them."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePath

import numpy as np

from yoloyard.common.errors import printable
from yoloyard.common.files import write_whole_text
from yoloyard.common.lineage import data_name, meaning
from yoloyard.common.tiles import image_facts
from yoloyard.common.versions import versions
from yoloyard.data.index.index import Index
from yoloyard.data.index.tiled import tile_spec
from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.training.setup.setup import Setup

MAX_CLASSES = 30  # with a row of their own
FEW_IMAGES = 100  # of a validation whose figures say little
LICENCE_UNKNOWN = "This run was begun by an older version, which kept no record of what it started from."


def write_card(path: Path, setup: Setup, epoch: int, metrics: Metrics, other: Metrics | None = None) -> None:
    """Write the card of weights of `epoch`, from 1; `other`: figures of the network's other path. Raises UserError.

    It has no paths of the host, and names of users can't act as Markdown or HTML.
    """
    config, spec, train, val = setup.config, setup.spec, setup.train_index, setup.val_index
    boxes = _boxes(train)
    title = f"{_safe(spec.model_name)}, trained on {_safe(data_name(config.data))}"
    start = _safe(PurePath(config.weights).name) if config.weights else "random weights"
    settings = {
        "model": _safe(spec.model_name),
        "start": start,
        **{name.lower(): text for name, text in image_facts(config.imgsz, train.pixels, tile_spec(config)).items()},
        "epochs": f"{config.epochs}, the best one is {epoch}",
        "batch": config.batch,
        "optimizer": f"{config.optimization.optimizer}, lr0 {config.optimization.lr0:g}",
        "seed": config.seed,
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    lines = [
        f"# {title}",
        "",
        "## Data",
        "",
        f"- Training: {len(train):,} images, {boxes.sum():,} boxes, {len(spec.names)} classes",
        f"- Validation: {len(val):,} images, {_boxes(val).sum():,} boxes",
        "",
        "## Figures",
        "",
        *_table(
            ("suppression", "mAP50-95", "mAP50"),
            (
                (f"{each.suppression}{' (used)' * (each is metrics)}", f"{each.map50_95:.3f}", f"{each.map50:.3f}")
                for each in (metrics, other)
                if each
            ),
        ),
        "",
        f"Of epoch {epoch}, on the validation images, which also chose this epoch: expect a little less on others.",
        *[f"They are only {len(val)}: such figures change by chance with other images."] * (len(val) < FEW_IMAGES),
        "",
        *_classes(boxes, metrics),
        "",
        "## Settings",
        "",
        *(f"- {name}: {value}" for name, value in settings.items()),
        "",
        "## Licence",
        "",
        _safe(meaning(spec.history)) if spec.history is not None else LICENCE_UNKNOWN,
        "",
        "## Use",
        "",
        "```",
        "yoloyard predict --weights best.safetensors IMAGES",
        "yoloyard export --weights best.safetensors --to onnx",
        "```",
        "",
        "```python",
        "import yoloyard",
        "",
        'found = yoloyard.load("best.safetensors")("image.jpg")',
        "print(found.boxes, found.scores, found.labels)",
        "```",
    ]
    if spec.model_digest is not None:
        lines += ["", f"The network is in {_safe(spec.model_name.rpartition(':')[0])}: keep it with the weights."]
    write_whole_text(path, "\n".join(lines) + "\n")


def _classes(training_boxes: np.ndarray, metrics: Metrics) -> list[str]:
    """A table of the classes with the most boxes, and what must be known of the others."""
    order = sorted(range(len(metrics.classes)), key=lambda label: (-training_boxes[label], label))
    rows = []
    for label in order[:MAX_CLASSES]:
        of_class = metrics.classes[label]
        figures = (f"{of_class.map50_95:.3f}", f"{of_class.map50:.3f}") if of_class.boxes else ("not known",) * 2
        rows.append((_safe(of_class.name), f"{training_boxes[label]:,}", f"{of_class.boxes:,}", *figures))
    lines = _table(("class", "boxes, training", "boxes, validation", "mAP50-95", "mAP50"), rows)
    if more := len(order) - len(rows):
        lines += ["", f"{more} more classes have no more boxes than these; `report.html` of the run has them all."]
    for what, labels in (
        ("training, which are never found", [label for label in order if not training_boxes[label]]),
        ("validation, whose figures nobody knows", [each for each in order if not metrics.classes[each].boxes]),
    ):
        if labels:
            lines += ["", f"Classes without a box in {what}: {len(labels)}."]
    return lines


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _boxes(index: Index) -> np.ndarray:
    """Boxes of each class (C,), without crowds."""
    return np.bincount(index.labels[~index.ignore], minlength=len(index.names))


def _safe(text: str) -> str:
    """A name as plain text: no sign in it acts as Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!&~$@]|:(?=//))", r"\\\1", printable(" ".join(text.split())))
