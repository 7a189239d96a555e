"""What the rules of the monitor look back at: figures of the last steps and epochs, plain numbers on the host."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from yoloyard.evaluation.metrics.coco import ClassMetrics, Metrics
from yoloyard.training.engine.engine import Figures

NORMS_KEPT = 100  # updates whose gradient norm is kept
LOSSES_KEPT = 20  # steps whose loss is kept: the median of them is not moved by a few odd batches
MEASURED_KEPT = 20  # measurements of updates and of labels, each some steps apart
EPOCHS_KEPT = 100
EPOCH_FIGURES = ("epoch", "val/map50_95", "speed/waiting_fraction", "speed/seconds")
SPIKES_KEPT = 5
MIN_NORMS = 30  # updates before a gradient norm can be called unusual
MIN_SPREAD = 0.25  # of log norms: where they hardly vary, a small change is no sign
SPIKE_Z = 10.0  # robust z-score of a log norm that is a spike
RISING_RATIO = 1.3  # of the lowest median of the loss: above it the loss is on its way up
NEVER_BOXES = 5  # of a class in the validation set, below which not finding it says little
LEARNED_LABEL_RATIO = 0.85  # of the loss to that with the labels of other images: below it something is learned
LEARNED_KEPT = 5  # measurements in a row that must be below
SETTLED_STEPS = 300  # after which a spike of the norm counts also where nothing is learned
MIN_RATE_SHARE = 0.1  # of the full learning rate, below which an update says little about that rate


@dataclass
class History:
    """The past of a run, as far as the rules need it. All of it is JSON, so that a checkpoint can keep it."""

    number: int = -1  # of the last step, from 0
    is_warmed_up: bool = False
    norms: list[float] = field(default_factory=list)  # natural logarithms of gradient norms before clipping
    norm_z: float = 0.0  # robust z-score of the last norm against those before it
    spikes: list[int] = field(default_factory=list)  # steps with an unusual norm
    losses: list[float] = field(default_factory=list)
    lowest_loss: float | None = None  # the lowest median of `losses` since the network had learned something
    calm_until: int = -1  # the last step with a median of the loss near its lowest
    updates: list[float] = field(default_factory=list)  # lengths of updates over those of the weights
    full_updates: list[float] = field(default_factory=list)  # the same, as they would be at the full learning rate
    label_ratios: list[float] = field(default_factory=list)  # the loss over that with the labels of other images
    scale: float = 1.0  # of the loss
    epochs: list[dict[str, float]] = field(default_factory=list)  # EPOCH_FIGURES, `loss`, `lost`, `found_map50`

    @property
    def label_ratio(self) -> float:
        """The highest of the last measurements of the loss over that with the labels of other images; 1 if unknown."""
        return max(self.label_ratios[-LEARNED_KEPT:]) if len(self.label_ratios) >= LEARNED_KEPT else 1.0

    @property
    def has_learned(self) -> bool:
        """Does what the network finds depend on the image?"""
        return self.label_ratio < LEARNED_LABEL_RATIO

    def add_step(self, figures: Figures, rate_share: float, is_warmed_up: bool) -> None:
        """Take up a step that was not a bad one; `rate_share` is its learning rate over the full one."""
        self.number, self.is_warmed_up, self.scale = figures.number, is_warmed_up, figures.scale
        self._add_loss(sum(figures.losses))
        if math.isfinite(figures.gradient_norm):
            self._add_norm(math.log(max(figures.gradient_norm, 1e-12)))
        if math.isfinite(figures.update_ratio):
            _append(self.updates, figures.update_ratio, MEASURED_KEPT)
            if rate_share > MIN_RATE_SHARE:
                _append(self.full_updates, figures.update_ratio / rate_share, MEASURED_KEPT)
        if math.isfinite(figures.label_ratio) and is_warmed_up:
            _append(self.label_ratios, figures.label_ratio, MEASURED_KEPT)

    def add_epoch(self, record: Mapping[str, float], metrics: Metrics | None) -> None:
        """Take up the record of an epoch, and how many classes its validation did not find."""
        loss = sum(value for name, value in record.items() if name.startswith("train/"))
        kept = {name: record[name] for name in EPOCH_FIGURES if name in record}
        if metrics is not None:
            lost, found = lost_classes(metrics), [row.map50 for row in metrics.classes if row.boxes and row.map50]
            kept |= {"lost": len(lost), "found_map50": median(found) if found else 0.0}
        _append(self.epochs, kept | {"loss": loss}, EPOCHS_KEPT)

    def state_dict(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, of this version or another one: what is missing there begins again."""
        vars(self).update(vars(History()) | {name: state[name] for name in vars(self).keys() & state.keys()})

    def _add_loss(self, loss: float) -> None:
        _append(self.losses, loss, LOSSES_KEPT)
        if len(self.losses) < LOSSES_KEPT:
            return
        now = median(self.losses)
        # At first the task-aligned loss is low and rises: it weighs boxes by how well they are found already.
        if self.lowest_loss is not None or self.has_learned:
            self.lowest_loss = now if self.lowest_loss is None else min(now, self.lowest_loss)
        if self.lowest_loss is None or now <= RISING_RATIO * self.lowest_loss:
            self.calm_until = self.number

    def _add_norm(self, norm: float) -> None:
        self.norm_z = 0.0
        is_settled = self.lowest_loss is not None or self.number >= SETTLED_STEPS
        if len(self.norms) >= MIN_NORMS and is_settled:
            centre = median(self.norms)
            spread = 1.4826 * median(abs(each - centre) for each in self.norms)
            self.norm_z = (norm - centre) / max(spread, MIN_SPREAD)
        if self.norm_z > SPIKE_Z:
            _append(self.spikes, self.number, SPIKES_KEPT)
        _append(self.norms, norm, NORMS_KEPT)


def lost_classes(metrics: Metrics) -> list[ClassMetrics]:
    """The classes with boxes of which none was found."""
    return [row for row in metrics.classes if row.boxes >= NEVER_BOXES and row.map50 == 0]


def _append(values: list[Any], value: Any, kept: int) -> None:
    values.append(value)
    del values[:-kept]
