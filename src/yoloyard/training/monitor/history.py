"""What the rules of the monitor look back at: figures of the last steps and epochs, plain numbers on the host."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.training.engine.engine import MAX_GRADIENT_NORM, Figures
from yoloyard.training.engine.measures import UPDATES_PERIOD
from yoloyard.training.engine.schedule import Schedule
from yoloyard.training.listeners.events import Record

NORMS_KEPT = 100  # updates whose gradient norm is kept
LOSSES_KEPT = 20  # steps whose loss is kept: the median of them is not moved by a few odd batches
MEASURED_KEPT = 20  # measurements of updates and of labels, each some steps apart
EPOCHS_KEPT = 100
SPIKES_KEPT = 5
MIN_NORMS = 30  # updates before a gradient norm can be called unusual
MIN_SPREAD = 0.25  # of log norms: where they hardly vary, a small change is no sign
SPIKE_Z = 10.0  # robust z-score of a log norm that is a spike
RISING_RATIO = 1.3  # of the lowest median of the loss: above it the loss is on its way up
NEVER_BOXES = 5  # of a class in the validation set, below which not finding it says little
LEARNED_LABEL_RATIO = 0.85  # of the loss to that with the labels of other images: below it something is learned
LEARNED_KEPT = 5  # measurements in a row that must be below
MIN_RATE_SHARE = 0.1  # of the full learning rate, below which an update says little about that rate


@dataclass
class History:
    """The past of a run, as far as the rules need it. All of it is JSON, so that a checkpoint can keep it."""

    number: int = -1  # of the last batch, from 0
    norms: list[float] = field(default_factory=list)  # natural logarithms of gradient norms before clipping
    norm_z: float = 0.0  # robust z-score of the last norm against those before it
    spikes: list[int] = field(default_factory=list)  # batches with an unusual norm
    losses: list[float] = field(default_factory=list)
    lowest_loss: float | None = None  # the lowest median of `losses` since the network had learned something
    rising_since: int | None = None  # a batch before the loss began to rise, while its median is well above the lowest
    # since the warm-up: lengths of updates over those of the weights, as they would be at the full learning rate
    updates: list[float] = field(default_factory=list)
    moved: float = 0.0  # since then: the lengths of all updates over those of the weights, added up
    label_ratios: list[float] = field(default_factory=list)  # since then: loss over that with labels of other images
    scale: float = 1.0  # of the loss
    epochs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def has_learned(self) -> bool:
        """Does what the network finds depend on the image?"""
        last = self.label_ratios[-LEARNED_KEPT:]
        return len(last) == LEARNED_KEPT and max(last) < LEARNED_LABEL_RATIO

    def add_step(self, figures: Figures, schedule: Schedule) -> None:
        """Take up a step that was not a bad one."""
        self.number, self.scale = figures.number, figures.scale
        self._add_loss(sum(figures.losses))
        if math.isfinite(figures.gradient_norm):
            self._add_norm(math.log(max(figures.gradient_norm, 1e-12)))
        if figures.number < schedule.warmup_batches:
            return
        full = schedule.config.lr0 * schedule.rate_factor
        share = schedule.rate(figures.number) / full if full else 1.0
        if math.isfinite(figures.update_ratio):
            self.moved += figures.update_ratio * max(UPDATES_PERIOD / schedule.accumulate, 1)
            if share > MIN_RATE_SHARE:
                _append(self.updates, figures.update_ratio / share, MEASURED_KEPT)
        if math.isfinite(figures.label_ratio):
            _append(self.label_ratios, figures.label_ratio, MEASURED_KEPT)

    def add_epoch(self, record: Record, metrics: Metrics | None) -> None:
        """Take up the record of an epoch, and which classes its validation did not find."""
        epoch: dict[str, Any] = {"epoch": record["epoch"], "has_learned": self.has_learned}
        epoch["loss"] = sum(value for name, value in record.items() if name.startswith("train/"))
        epoch |= {name: record.get(f"speed/{name}", 0.0) for name in ("waiting_fraction", "seconds")}
        if metrics is not None and (classes := [row for row in metrics.classes if row.boxes]):
            lost = [f"{row.name} ({row.boxes} boxes)" for row in classes if row.boxes >= NEVER_BOXES and not row.map50]
            found = median([row.map50 for row in classes if row.map50] or [0.0])
            epoch |= {"map50_95": record["val/map50_95"], "map50": metrics.map50, "lost": lost, "found_map50": found}
        _append(self.epochs, epoch, EPOCHS_KEPT)

    def last_good(self, number: int) -> int:
        """The batch, up to `number`, before which the loss did not rise, which shows some steps late."""
        return number if self.rising_since is None else min(number, self.rising_since)

    def validated(self) -> list[dict[str, Any]]:
        """The epochs with a validation, if the last one has one."""
        is_new = bool(self.epochs) and "map50" in self.epochs[-1]
        return [epoch for epoch in self.epochs if "map50" in epoch] if is_new else []

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from these fields as JSON, of this version or another one: what is missing there begins again."""
        vars(self).update(vars(History()) | {name: state[name] for name in vars(self).keys() & state.keys()})

    def _add_loss(self, loss: float) -> None:
        _append(self.losses, loss, LOSSES_KEPT)
        if len(self.losses) < LOSSES_KEPT:
            return
        now = median(self.losses)
        # At first the task-aligned loss is low and rises: it weighs boxes by how well they are found already.
        if self.lowest_loss is not None or self.has_learned:
            self.lowest_loss = min(now, now if self.lowest_loss is None else self.lowest_loss)
            if now <= RISING_RATIO * self.lowest_loss:
                self.rising_since = None
            elif self.rising_since is None:
                self.rising_since = max(self.number - LOSSES_KEPT, 0)

    def _add_norm(self, norm: float) -> None:
        self.norm_z = 0.0
        # Before anything is learned, and below the limit of clipping, norms may change by any factor.
        if len(self.norms) >= MIN_NORMS and self.lowest_loss is not None and norm > math.log(MAX_GRADIENT_NORM):
            centre = median(self.norms)
            spread = 1.4826 * median(abs(each - centre) for each in self.norms)
            self.norm_z = (norm - centre) / max(spread, MIN_SPREAD)
        if self.norm_z > SPIKE_Z:
            _append(self.spikes, self.number, SPIKES_KEPT)
        _append(self.norms, norm, NORMS_KEPT)


def _append(values: list[Any], value: Any, kept: int) -> None:
    values.append(value)
    del values[:-kept]
