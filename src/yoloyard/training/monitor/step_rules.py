"""Rules that look at every step: from the history to an alert, or None. Their thresholds stand here."""

import math
from collections.abc import Callable
from statistics import median

from yoloyard.training.listeners.events import AlertRaised
from yoloyard.training.monitor.history import LOSSES_KEPT, MEASURED_KEPT, SPIKE_Z, History

DIVERGED = "diverged"  # the kind that `--on-divergence` answers, beside steps that are not finite
DIVERGED_RATIO = 5.0  # of the median loss to the lowest one
LOST_RATIO = 1.5  # the same, where what was learned is lost: the labels of other images give the same loss again
LOST_LABEL_RATIO = 0.95
MANY_UPDATES = 5  # measurements whose median counts
LARGE_UPDATE = 1.5e-2  # of the weights' length, in one update; the smallest networks need half of it
COLLAPSED_SCALE = 8.0  # of the loss: it begins at 65536 and halves with each gradient that is not finite
UNFIT_LABEL_RATIO = 0.95  # of the loss to that with the labels of other images
UNFIT_LAST = 10  # measurements whose median counts

Rule = Callable[[History], AlertRaised | None]


def exploding_gradients(seen: History) -> AlertRaised | None:
    """The gradient is many times longer than it was in the last updates."""
    if seen.norm_z <= SPIKE_Z:
        return None
    usual = math.exp(median(seen.norms[:-1]))
    return AlertRaised(
        "gradients explode: one is far longer than those before it",
        "exploding-gradients",
        f"norm {math.exp(seen.norms[-1]):.3g} where {usual:.3g} is usual, z-score {seen.norm_z:.0f}",
        "look at the labels and at blocks of your own; if it comes again, a lower --lr0 helps",
    )


def diverged(seen: History) -> AlertRaised | None:
    """The loss has risen to several times its lowest value, or what was learned is lost."""
    if seen.lowest_loss is None:
        return None
    is_lost = min(seen.label_ratios[-3:]) > LOST_LABEL_RATIO
    if median(seen.losses) <= (LOST_RATIO if is_lost else DIVERGED_RATIO) * seen.lowest_loss:
        return None
    return AlertRaised(
        "training diverges: the loss rises instead of falling",
        DIVERGED,
        f"median of {LOSSES_KEPT} steps {median(seen.losses):.3g}, it was {seen.lowest_loss:.3g}",
        "lower --lr0, or lengthen --warmup-epochs",
    )


def updates_too_large(seen: History) -> AlertRaised | None:
    """Each update moves the weights by a large part of their length."""
    last = seen.updates[-MANY_UPDATES:]
    if len(last) < MANY_UPDATES or median(last) <= LARGE_UPDATE:
        return None
    return AlertRaised(
        "the learning rate is too high: each update moves the weights by a large part of their length",
        "rate-too-high",
        f"update over weights {median(last):.2g}; about 1e-3 is usual, above {LARGE_UPDATE:g} little is learned",
        "lower --lr0 to a tenth",
    )


def nothing_moves(seen: History) -> AlertRaised | None:
    """The weights are those of the beginning."""
    last = seen.updates[-MANY_UPDATES:]
    if len(last) < MANY_UPDATES or max(last) > 0:
        return None
    return AlertRaised(
        "nothing is trained: the weights don't move",
        "frozen",
        f"update over weights 0 in {len(last)} measurements",
        "raise --lr0, lower --freeze, and look for detach() and no_grad() in a model of your own",
    )


def scaler_collapsing(seen: History) -> AlertRaised | None:
    """The loss scaler has halved its scale again and again."""
    if seen.scale >= COLLAPSED_SCALE or seen.scale == 1.0:  # 1: there is no scaler
        return None
    return AlertRaised(
        "float16 overflows: the loss scaler lowers its scale again and again",
        "scaler-collapsing",
        f"scale {seen.scale:.3g}, it begins at 65536",
        "train with --no-amp, or with a lower --lr0; look for large values in blocks of your own",
    )


def labels_that_do_not_fit(seen: History) -> AlertRaised | None:
    """After the warm-up the labels of other images give the same loss, and nothing was learned before."""
    last = seen.label_ratios[-UNFIT_LAST:]
    if seen.lowest_loss is not None or len(seen.label_ratios) < MEASURED_KEPT or median(last) <= UNFIT_LABEL_RATIO:
        return None
    return AlertRaised(
        "the labels do not fit the images: the labels of other images give the same loss",
        "labels-do-not-fit",
        f"loss over loss with shuffled labels {median(last):.3f}, it should fall well below 1",
        "if no other alert explains it, look at the first training batches in TensorBoard, and check how label files "
        "are matched with images",
    )


STEP_RULES: tuple[Rule, ...] = (
    exploding_gradients,
    diverged,
    updates_too_large,
    nothing_moves,
    scaler_collapsing,
    labels_that_do_not_fit,
)
