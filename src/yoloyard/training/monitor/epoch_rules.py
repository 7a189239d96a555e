"""Rules that look at every epoch: from the history, and what its validation found, to an alert, or None."""

from collections.abc import Callable
from statistics import median

from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.training.listeners.events import AlertRaised
from yoloyard.training.monitor.history import History, lost_classes

FIGURE = "val/map50_95"
FLAT_EPOCHS = 3  # over which a rate that is too low shows
FLAT_CHANGE = 0.05  # of the loss, below which it is flat
SMALL_UPDATE = 2e-5  # of the weights' length, in one update at the full learning rate
RISING_EPOCHS = 4  # in which the loss rises after the warm-up
RISING_RATIO = 1.5  # of the loss to that before these epochs
PLATEAU_EPOCHS = 20  # without anything better
PLATEAU_CHANGE = 0.01  # of the training loss meanwhile
OVERFIT_EPOCHS = 5  # since the best figure, at least
OVERFIT_SHARE = 0.85  # of the best figure, which all later ones are below
OVERFIT_LOSS = 0.97  # of the training loss to that of the best epoch
MIN_FIGURE = 0.05  # below it a figure says nothing yet
FAR_EPOCHS = 20  # after which validation must show something
FAR_MAP50 = 0.05  # of validation, although the network has learned something
NEVER_EPOCHS = 10  # validated ones in a row in which a class is not found, and the others are
NEVER_MAP50 = 0.5  # median of the other classes, which shows that the network works
STARVED_SHARE = 0.5  # of an epoch's time
STARVED_SECONDS = 3.0  # below it nobody minds

Rule = Callable[[History, Metrics | None], AlertRaised | None]


def rate_too_low(seen: History, metrics: Metrics | None) -> AlertRaised | None:
    """Updates are tiny, and the loss is flat."""
    if len(seen.epochs) <= FLAT_EPOCHS or not seen.is_warmed_up or not seen.full_updates:
        return None
    update, change = (
        median(seen.full_updates),
        1 - seen.epochs[-1]["loss"] / max(seen.epochs[-1 - FLAT_EPOCHS]["loss"], 1e-12),
    )
    if not 0 < update < SMALL_UPDATE or change > FLAT_CHANGE:
        return None
    return AlertRaised(
        "the learning rate is too low: the weights hardly move, and the loss is flat",
        "rate-too-low",
        f"update over weights {update:.2g}, loss {change:.1%} lower than {FLAT_EPOCHS} epochs ago",
        "raise --lr0 tenfold",
    )


def loss_rising(seen: History, metrics: Metrics | None) -> AlertRaised | None:
    """After the warm-up the loss of each epoch is above that of the one before."""
    last = [epoch["loss"] for epoch in seen.epochs[-RISING_EPOCHS - 1 :]]
    if len(last) <= RISING_EPOCHS or seen.lowest_loss is None or sorted(last) != last:
        return None
    if last[-1] <= RISING_RATIO * last[0]:
        return None
    return AlertRaised(
        "the learning rate is too high: the training loss rises from epoch to epoch",
        "rate-too-high",
        f"loss {last[-1]:.3g}, {RISING_EPOCHS} epochs ago {last[0]:.3g}",
        "lower --lr0 to a tenth",
    )


def plateau(seen: History, metrics: Metrics | None) -> AlertRaised | None:
    """Neither the figure nor the training loss has moved for long, at a rate that could move them."""
    now, figures = seen.epochs[-1], [epoch.get(FIGURE) for epoch in seen.epochs]
    found = [figure for figure in figures if figure is not None]
    if metrics is None or len(seen.epochs) <= PLATEAU_EPOCHS or max(found) < MIN_FIGURE:
        return None
    since = len(figures) - 1 - figures.index(max(found))
    before = seen.epochs[-1 - PLATEAU_EPOCHS]
    if since < PLATEAU_EPOCHS or abs(1 - now["loss"] / before["loss"]) > PLATEAU_CHANGE:
        return None
    return AlertRaised(
        "training stands still: neither loss nor figures change any more",
        "plateau",
        f"best {FIGURE[4:]} {max(found):.3f} {since} epochs ago, loss {now['loss']:.3g} then and now",
        "stop here, or train a larger model or on more images; a lower --patience ends such runs by itself",
    )


def overfitting(seen: History, metrics: Metrics | None) -> AlertRaised | None:
    """The training loss falls, and the figure of validation falls."""
    validated = [epoch for epoch in seen.epochs if FIGURE in epoch]
    if metrics is None or not validated:
        return None
    figures = [epoch[FIGURE] for epoch in validated]
    best = figures.index(max(figures))
    since = figures[best + 1 :]
    if max(figures) < MIN_FIGURE or len(since) < OVERFIT_EPOCHS or max(since) > OVERFIT_SHARE * max(figures):
        return None
    if validated[-1]["loss"] > OVERFIT_LOSS * validated[best]["loss"]:
        return None
    return AlertRaised(
        "overfitting: the training loss falls, and the figures of validation fall",
        "overfitting",
        f"{FIGURE[4:]} {figures[-1]:.3f}, it was {max(figures):.3f} in epoch {validated[best]['epoch']:.0f}; "
        f"loss {validated[best]['loss']:.3g}, now {validated[-1]['loss']:.3g}",
        "add images or augmentation, or train a smaller model or fewer epochs; best.safetensors has the best epoch",
    )


def far_below_training(seen: History, metrics: Metrics | None) -> AlertRaised | None:
    """The network has learned the training images, and finds nothing in those of validation."""
    if metrics is None or len(seen.epochs) < FAR_EPOCHS or metrics.map50 > FAR_MAP50:
        return None
    if not seen.has_learned or not any(row.boxes for row in metrics.classes):
        return None
    return AlertRaised(
        "validation is far below training: the network learns the training images and finds nothing in the others",
        "validation-far-below-training",
        f"map50 {metrics.map50:.3f}; loss over loss with the labels of other images {seen.label_ratio:.2f} in training",
        "check that both splits show the same things under the same class numbers, and the labels of val",
    )


def class_never_found(seen: History, metrics: Metrics | None) -> AlertRaised | None:
    """A class has boxes, and none of them was ever found, while others are found well."""
    last = [epoch for epoch in seen.epochs if "found_map50" in epoch][-NEVER_EPOCHS:]
    is_long = len(last) == NEVER_EPOCHS and all(each["lost"] and each["found_map50"] >= NEVER_MAP50 for each in last)
    if metrics is None or not is_long:
        return None
    names = ", ".join(f"{row.name} ({row.boxes} boxes)" for row in lost_classes(metrics))
    return AlertRaised(
        f"never found: {names}",
        "class-never-found",
        f"map50 0 in {NEVER_EPOCHS} epochs, median of the other classes {last[-1]['found_map50']:.2f}",
        "check the class numbers of train and val, and whether train has enough boxes of it; --repeat-factor shows "
        "rare classes more often",
    )


def starved(seen: History, metrics: Metrics | None) -> AlertRaised | None:
    """The device waits for data most of the time; the first epoch, which fills caches, does not count."""
    if len(seen.epochs) < 2:
        return None
    share, seconds = (seen.epochs[-1].get(f"speed/{name}", 0.0) for name in ("waiting_fraction", "seconds"))
    if share < STARVED_SHARE or share * seconds < STARVED_SECONDS:
        return None
    return AlertRaised(
        "training waits for its data",
        "starved",
        f"{share:.0%} of the last epoch, {share * seconds:.0f} seconds",
        "raise --workers, use --cache ram or disk, make your own transform faster, or move the images to a local disk",
    )


EPOCH_RULES: tuple[Rule, ...] = (
    rate_too_low,
    loss_rising,
    plateau,
    overfitting,
    far_below_training,
    class_never_found,
    starved,
)
