"""What is wrong with a run, by its history: each rule says what shows it, or nothing. Thresholds stand here."""

import math
from collections.abc import Callable
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np

from yoloyard.training.monitor.history import LOSSES_KEPT, SPIKE_Z, History
from yoloyard.training.setup.setup import Setup

DIVERGED_RATIO = 5.0  # of the median loss to the lowest one
LOST_RATIO = 1.5  # the same, where what was learned is lost: the labels of other images give the same loss again
LOST_LABEL_RATIO = 0.95
MANY_MEASURED = 10  # measurements of updates or labels that count together
FEW_MEASURED = 5
LARGE_UPDATE = 1.5e-2  # of the weights' length, in one update, where it leads to nothing
SMALL_UPDATE = 2e-5  # at the full learning rate; fine-tuning at a rate of 1e-5 needs twice as much
FUTILE_LABEL_RATIO = 0.9  # of the loss to that with the labels of other images: above it hardly anything is learned
COLLAPSED_SCALE = 8.0  # of the loss: it begins at 65536 and halves with each gradient that is not finite
FLAT_EPOCHS = 3  # over which a rate that is too low shows
FLAT_CHANGE = 0.05  # of the loss, below which it is flat
RISING_EPOCHS = 4  # in which the loss rises after the warm-up
RISING_EPOCHS_RATIO = 1.5  # of the loss to that before these epochs
PLATEAU_EPOCHS = 20  # without anything better
PLATEAU_CHANGE = 0.01  # of the training loss meanwhile
OVERFIT_EPOCHS = 10  # since the best figure, at least
OVERFIT_SHARE = 0.85  # of the best figure, which all later ones are below
OVERFIT_LOSS = 0.97  # of the training loss to that of the best epoch
FIGURE = "map50_95"
MIN_FIGURE = 0.05  # below it a figure says nothing yet
FAR_EPOCHS = 15  # validated ones in a row in which the network has learned, and finds nothing
NEVER_EPOCHS = 20  # validated ones in a row in which a class is not found, and the others are
NEVER_MAP50 = 0.5  # median of the other classes, which shows that the network works
UNFIT_LABEL_RATIOS = (0.9, 1.1)  # of the loss to that with the labels of other images
UNFIT_MOVED = 0.6  # lengths of the weights, by which all updates together have moved them; a slow start moves less
UNFIT_MAP50 = 0.25  # above it the labels fit: the objects are in the same place in all images
STARVED_SHARE = 0.5  # of an epoch's time
STARVED_SECONDS = 3.0  # below it nobody minds
MIN_VAL_BOXES = 8
MIN_VAL_IMAGES = 4  # with boxes
EMPTY_SHARE = 0.9  # of the training images, without a box
MANY_LABELLED = 100  # training images with boxes, which are enough whatever their share
TRAINABLE_SHARE = 1e-3  # of the parameters


class Rule(NamedTuple):
    """Something that can be wrong, and what to do; `evidence` gives what shows it in its source, or an empty text."""

    kind: str
    message: str
    remedy: str
    evidence: Callable[[Any], str]


def rule(message: str, remedy: str, kind: str = "") -> Callable[[Callable[[Any], str]], Rule]:
    """Make a rule of the function that finds its evidence; `kind` is the function's name unless given."""
    return lambda evidence: Rule(kind or evidence.__name__.replace("_", "-"), message, remedy, evidence)


@rule(
    "the training images have hardly any labels",
    "check where the label files lie: yoloyard data check names the places that were looked at",
)
def no_labels(setup: Setup) -> str:
    counts = np.diff(setup.train_index.offsets)
    labelled = int((counts > 0).sum())
    is_few = labelled < MANY_LABELLED and labelled <= (1 - EMPTY_SHARE) * len(counts)
    return f"{len(counts) - labelled} of {len(counts)} images are without a box" if is_few else ""


@rule(
    "the validation set is too small to judge by: single boxes decide which weights are the best",
    "move more images to val, some hundred boxes at least",
)
def small_validation(setup: Setup) -> str:
    counts = np.diff(setup.val_index.offsets)
    boxes, images = int(counts.sum()), int((counts > 0).sum())
    return f"{boxes} boxes in {images} images" if boxes < MIN_VAL_BOXES or images < MIN_VAL_IMAGES else ""


@rule("almost everything is frozen", "lower --freeze", kind="frozen")
def almost_all_frozen(setup: Setup) -> str:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in setup.detector.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    return f"{trained:,} of {total:,} parameters are trained" if trained < TRAINABLE_SHARE * total else ""


@rule(
    "gradients explode: one is far longer than those before it",
    "look at the labels and at blocks of your own; if it comes again, a lower --lr0 helps",
)
def exploding_gradients(seen: History) -> str:
    if seen.norm_z <= SPIKE_Z:
        return ""
    usual = math.exp(median(seen.norms[:-1]))
    return f"norm {math.exp(seen.norms[-1]):.3g} where {usual:.3g} is usual, z-score {seen.norm_z:.0f}"


@rule("training diverges: the loss rises instead of falling", "lower --lr0, or lengthen --warmup-epochs")
def diverged(seen: History) -> str:
    if seen.lowest_loss is None:
        return ""
    now, is_lost = median(seen.losses), min(seen.label_ratios[-3:]) > LOST_LABEL_RATIO
    limit = (LOST_RATIO if is_lost else DIVERGED_RATIO) * seen.lowest_loss
    return f"median of {LOSSES_KEPT} steps {now:.3g}, it was {seen.lowest_loss:.3g}" if now > limit else ""


@rule(
    "nothing is trained: the weights don't move",
    "raise --lr0, lower --freeze, and look for detach() and no_grad() in a model of your own",
)
def frozen(seen: History) -> str:
    last = seen.updates[-FEW_MEASURED:]
    is_still = len(last) == FEW_MEASURED and max(last) == 0
    return f"update over weights 0 in {len(last)} measurements" if is_still else ""


@rule(
    "float16 overflows: the loss scaler lowers its scale again and again",
    "train with --no-amp, or with a lower --lr0; look for large values in blocks of your own",
)
def scaler_collapsing(seen: History) -> str:
    is_low = seen.scale < COLLAPSED_SCALE and seen.scale != 1.0  # 1: there is no scaler
    return f"scale {seen.scale:.3g}, it begins at 65536" if is_low else ""


@rule("the learning rate is too low: the weights hardly move, and the loss is flat", "raise --lr0 tenfold")
def rate_too_low(seen: History) -> str:
    if len(seen.epochs) <= FLAT_EPOCHS or len(seen.updates) < FEW_MEASURED:
        return ""
    update = median(seen.updates)
    change = 1 - seen.epochs[-1]["loss"] / max(seen.epochs[-1 - FLAT_EPOCHS]["loss"], 1e-12)
    if not 0 < update < SMALL_UPDATE or change > FLAT_CHANGE:
        return ""
    return f"update over weights {update:.2g}, loss {change:.1%} lower than {FLAT_EPOCHS} epochs ago"


@rule(
    "the learning rate is too high: the loss rises, or the weights move by large steps and hardly anything is learned",
    "lower --lr0 to a tenth",
)
def rate_too_high(seen: History) -> str:
    losses = [epoch["loss"] for epoch in seen.epochs[-RISING_EPOCHS - 1 :]]
    is_rising = len(losses) > RISING_EPOCHS and seen.lowest_loss is not None and sorted(losses) == losses
    if is_rising and losses[-1] > RISING_EPOCHS_RATIO * losses[0]:
        return f"loss {losses[-1]:.3g}, {RISING_EPOCHS} epochs ago {losses[0]:.3g}"
    if min(len(seen.updates), len(seen.label_ratios)) < MANY_MEASURED:
        return ""
    update, labels = fmean(seen.updates[-MANY_MEASURED:]), median(seen.label_ratios[-MANY_MEASURED:])
    said = f"update over weights {update:.2g}, loss over loss with the labels of other images {labels:.2f}"
    return said if update > LARGE_UPDATE and labels > FUTILE_LABEL_RATIO else ""


@rule(
    "training stands still: neither loss nor figures change any more",
    "stop here, or train a larger model or on more images; a lower --patience ends such runs by itself",
)
def plateau(seen: History) -> str:
    figures = [epoch.get(FIGURE, 0.0) for epoch in seen.epochs]
    if not seen.validated() or len(figures) <= PLATEAU_EPOCHS or max(figures) < MIN_FIGURE:
        return ""
    since = len(figures) - 1 - figures.index(max(figures))
    now, before = seen.epochs[-1]["loss"], seen.epochs[-1 - PLATEAU_EPOCHS]["loss"]
    if since < PLATEAU_EPOCHS or abs(1 - now / before) > PLATEAU_CHANGE:
        return ""
    return f"best {FIGURE} {max(figures):.3f} {since} epochs ago, loss {now:.3g} and {before:.3g} before"


@rule(
    "overfitting: the training loss falls, and the figures of validation fall",
    "add images or augmentation, or train a smaller model or fewer epochs; best.safetensors has the best epoch",
)
def overfitting(seen: History) -> str:
    validated = seen.validated()
    figures = [epoch[FIGURE] for epoch in validated]
    if max(figures, default=0.0) < MIN_FIGURE:
        return ""
    best = figures.index(max(figures))
    since, before, now = figures[best + 1 :], validated[best], validated[-1]
    if len(since) < OVERFIT_EPOCHS or max(since) > OVERFIT_SHARE * figures[best]:
        return ""
    if now["loss"] > OVERFIT_LOSS * before["loss"]:
        return ""
    return (
        f"{FIGURE} {now[FIGURE]:.3f}, it was {before[FIGURE]:.3f} in epoch {before['epoch']:.0f}; "
        f"loss {before['loss']:.3g}, now {now['loss']:.3g}"
    )


@rule(
    "validation is far below training: the network learns the training images and finds nothing in the others",
    "check that both splits show the same things under the same class numbers, and the labels of val",
)
def validation_far_below_training(seen: History) -> str:
    last = seen.validated()[-FAR_EPOCHS:]
    is_far = len(last) == FAR_EPOCHS and all(each["has_learned"] and each["map50"] < MIN_FIGURE for each in last)
    if not is_far:
        return ""
    return (
        f"map50 {last[-1]['map50']:.3f}; loss over loss with the labels of other images "
        f"{seen.label_ratios[-1]:.2f} in training"
    )


@rule(
    "a class is never found, although val has boxes of it and the others are found",
    "check the class numbers of train and val, and whether train has enough boxes of it; --repeat-factor shows rare "
    "classes more often",
)
def class_never_found(seen: History) -> str:
    last = seen.validated()[-NEVER_EPOCHS:]
    if len(last) < NEVER_EPOCHS or not all(each["lost"] and each["found_map50"] >= NEVER_MAP50 for each in last):
        return ""
    lost = ", ".join(last[-1]["lost"])
    return f"{lost}: map50 0 in {len(last)} epochs, median of the other classes {last[-1]['found_map50']:.2f}"


@rule(
    "the labels do not fit the images: the labels of other images give the same loss",
    "if no other alert explains it, look at the first training batches in TensorBoard, and check how label files are "
    "matched with images",
)
def labels_do_not_fit(seen: History) -> str:
    last, (low, high) = seen.label_ratios[-MANY_MEASURED:], UNFIT_LABEL_RATIOS
    if seen.lowest_loss is not None or len(last) < MANY_MEASURED or seen.moved < UNFIT_MOVED or not seen.validated():
        return ""
    if not low < min(last) <= max(last) < high or max(each["map50"] for each in seen.validated()) > UNFIT_MAP50:
        return ""
    return f"loss over loss with shuffled labels {median(last):.3f}, it should fall well below 1"


@rule(
    "training waits for its data",
    "raise --workers, use --cache ram or disk, make your own transform faster, or move the images to a local disk",
)
def starved(seen: History) -> str:
    if len(seen.epochs) < 2:  # the first epoch fills caches
        return ""
    share, seconds = seen.epochs[-1]["waiting_fraction"], seen.epochs[-1]["seconds"]
    is_starved = share >= STARVED_SHARE and share * seconds >= STARVED_SECONDS
    return f"{share:.0%} of the last epoch, {share * seconds:.0f} seconds" if is_starved else ""


START_RULES = (no_labels, small_validation, almost_all_frozen)
STEP_RULES = (exploding_gradients, diverged, frozen, scaler_collapsing)
EPOCH_RULES = (
    rate_too_low,
    rate_too_high,
    plateau,
    overfitting,
    validation_far_below_training,
    class_never_found,
    labels_do_not_fit,
    starved,
)
