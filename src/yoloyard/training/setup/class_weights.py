"""Weights of the classes in the class loss (`--class-weights`): from the user's words to numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from yoloyard.common.errors import UsageError
from yoloyard.data.index.index import Index

BALANCED = "balanced"
NAMED = 20  # classes in a line


def resolve(text: str, index: Index) -> str:
    """The weights as numbers joined by commas, `balanced` replaced by what the training boxes say.

    Raises UsageError if they are not one for each class.
    """
    if text.strip() == BALANCED:
        labels = np.array(index.labels)[~np.array(index.ignore)]
        weights = balanced(np.bincount(labels, minlength=len(index.names)))
        text = ",".join(f"{weight:.6g}" for weight in weights)
    parse(text, len(index.names))
    return text


def parse(text: str, num_classes: int) -> tuple[float, ...]:
    """The numbers of a list joined by commas, one a class. Raises UsageError."""
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
    weights = list(zip(names, parse(text, len(names)), strict=True))
    shown = ", ".join(f"{name} {weight:.3g}" for name, weight in weights[:NAMED])
    return shown + (f" and {len(weights) - NAMED} more, see config.yaml" if len(weights) > NAMED else "")


def balanced(boxes: np.ndarray) -> np.ndarray:
    """Weights (C,) for classes with so many `boxes` (C,): their inverse root, with mean 1 over all boxes.

    A class without boxes has the weight 1.
    """
    weights = 1 / np.sqrt(np.maximum(boxes, 1))
    weights *= boxes.sum() / max((boxes * weights).sum(), 1e-12)
    return np.where(boxes > 0, weights, 1.0)
