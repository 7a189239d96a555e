"""Weights of the classes in the class loss (`--class-weights`): from the user's text to numbers."""

import math
from collections.abc import Sequence

import numpy as np

from yoloyard.common.errors import UsageError
from yoloyard.data.index.index import Index

MAX_CLASSES_NAMED = 20  # in a line


def resolve(text: str, index: Index) -> str:
    """The weights as numbers joined by commas; `balanced` ones follow from the training boxes. Raises UsageError."""
    if text.strip() == "balanced":
        labels = np.array(index.labels)[~np.array(index.ignore)]
        weights = balanced(np.bincount(labels, minlength=len(index.names)))
        text = ",".join(f"{weight:.6g}" for weight in weights)
    parse(text, len(index.names))
    return text


def parse(text: str, num_classes: int) -> tuple[float, ...]:
    """The numbers of a list joined by commas. Raises UsageError if they are not one for each class, or all 0."""
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--class-weights {text}: say 'balanced' or numbers such as 1,2,0.5 ({error})") from error
    if len(weights) != num_classes:
        raise UsageError(f"--class-weights has {len(weights)} numbers, but there are {num_classes} classes")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise UsageError(f"--class-weights {text}: no weight can be below 0 or infinite, and one must be above 0")
    return weights


def as_line(text: str, names: Sequence[str]) -> str:
    """The weights for a reader, the first ones of many."""
    parts = [f"{name} {weight:.3g}" for name, weight in zip(names, parse(text, len(names)), strict=True)]
    more = len(parts) - MAX_CLASSES_NAMED
    return ", ".join(parts[:MAX_CLASSES_NAMED]) + (f" and {more} more, see config.yaml" if more > 0 else "")


def balanced(boxes: np.ndarray) -> np.ndarray:
    """Weights (C,) for classes with `boxes` (C,): the inverse root, mean 1 over all boxes; 1 for a class without."""
    weights = 1 / np.sqrt(np.maximum(boxes, 1))
    weights *= boxes.sum() / max((boxes * weights).sum(), 1e-12)
    return np.where(boxes > 0, weights, 1.0)
