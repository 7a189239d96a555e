"""Rules that look at a run before its first step: its data, and what of the network is trained."""

from collections.abc import Callable

import numpy as np

from yoloyard.training.listeners.events import AlertRaised
from yoloyard.training.setup.setup import Setup

MIN_VAL_BOXES = 8
MIN_VAL_IMAGES = 4  # with boxes
EMPTY_SHARE = 0.9  # of the training images, without a box
TRAINABLE_SHARE = 1e-3  # of the parameters

Rule = Callable[[Setup], AlertRaised | None]


def no_labels(setup: Setup) -> AlertRaised | None:
    """Almost all training images are without boxes."""
    counts = np.diff(setup.train_index.offsets)
    empty = int((counts == 0).sum())
    if empty < EMPTY_SHARE * len(counts):
        return None
    return AlertRaised(
        "the training images have hardly any labels",
        "no-labels",
        f"{empty} of {len(counts)} images are without a box",
        "check where the label files lie: yoloyard data check names the places that were looked at",
    )


def small_validation(setup: Setup) -> AlertRaised | None:
    """So few boxes that one of them moves the figures."""
    counts = np.diff(setup.val_index.offsets)
    boxes, images = int(counts.sum()), int((counts > 0).sum())
    if boxes >= MIN_VAL_BOXES and images >= MIN_VAL_IMAGES:
        return None
    return AlertRaised(
        "the validation set is too small to judge by: single boxes decide which weights are the best",
        "small-validation",
        f"{boxes} boxes in {images} images",
        "move more images to val, some hundred boxes at least",
    )


def almost_all_frozen(setup: Setup) -> AlertRaised | None:
    """Almost no parameter is trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in setup.detector.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    if trained >= TRAINABLE_SHARE * total:
        return None
    return AlertRaised(
        "almost everything is frozen",
        "frozen",
        f"{trained:,} of {total:,} parameters are trained",
        "lower --freeze",
    )


START_RULES: tuple[Rule, ...] = (no_labels, small_validation, almost_all_frozen)
