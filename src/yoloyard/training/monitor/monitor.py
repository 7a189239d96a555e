"""The monitor of a run: it hears the figures of each step and epoch on the host, and raises alerts.

All processes have one, and all hear the same losses, norms and figures, so that they agree on a divergence. What a
process measures by itself (its waiting, its label ratio) decides nothing but an alert, which rank 0 alone tells.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.training.engine.engine import Figures
from yoloyard.training.engine.schedule import Schedule
from yoloyard.training.listeners.events import AlertRaised, Record
from yoloyard.training.monitor.epoch_rules import EPOCH_RULES
from yoloyard.training.monitor.history import History
from yoloyard.training.monitor.start_rules import START_RULES
from yoloyard.training.monitor.step_rules import DIVERGED, STEP_RULES
from yoloyard.training.setup.setup import Setup

CALM_EPOCHS = 10  # without a finding, after which the next one of its kind is told again


class Monitor:
    """Raises alerts by `tell`; each kind once, and again only after it was away for some epochs."""

    def __init__(self, tell: Callable[[AlertRaised], object]) -> None:
        self._tell = tell
        self.history = History()
        self._last_found: dict[str, int] = {}  # by kind: the batch of the run

    def look_at_start(self, setup: Setup) -> None:
        """Look at a run before its first step."""
        self._raise((rule(setup) for rule in START_RULES), math.inf)

    def look_at_step(self, figures: Figures, schedule: Schedule) -> AlertRaised | None:
        """Look at a step that was not a bad one; the alert if the run diverges."""
        full = schedule.config.lr0 * schedule.rate_factor
        share = schedule.rate(figures.number) / full if full else 0.0
        self.history.add_step(figures, share, figures.number >= schedule.warmup_batches)
        found = self._raise((rule(self.history) for rule in STEP_RULES), CALM_EPOCHS * schedule.batches_per_epoch)
        return next((alert for alert in found if alert.kind == DIVERGED), None)

    def look_at_epoch(self, record: Record, metrics: Metrics | None, batches: int) -> None:
        """Look at an epoch of so many `batches`; `metrics` where it was validated."""
        self.history.add_epoch(record, metrics)
        self._raise((rule(self.history, metrics) for rule in EPOCH_RULES), CALM_EPOCHS * batches)

    def look_at_bad_step(self, alert: AlertRaised, batches: int) -> bool:
        """Raise `alert` of a step that changed nothing, in epochs of so many `batches`; was it told?"""
        self.history.number += 1
        return self._tell_once(alert, CALM_EPOCHS * batches)

    def state_dict(self) -> dict[str, Any]:
        """What it has seen and told, as JSON."""
        return {"history": self.history.state_dict(), "last_found": dict(self._last_found)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.history.load_state_dict(state.get("history", {}))
        self._last_found = dict(state.get("last_found", {}))

    def go_back(self, state: Mapping[str, Any]) -> None:
        """Forget what was seen since `state_dict` gave `state`, not what was told."""
        self.history.load_state_dict(state.get("history", {}))

    def _raise(self, found: Iterable[AlertRaised | None], calm: float) -> list[AlertRaised]:
        alerts = [alert for alert in found if alert is not None]
        for alert in alerts:
            self._tell_once(alert, calm)
        return alerts

    def _tell_once(self, alert: AlertRaised, calm: float) -> bool:
        before, now = self._last_found.get(alert.kind), self.history.number
        self._last_found[alert.kind] = max(now, before or 0)
        is_new = before is None or now - before > calm
        if is_new:
            self._tell(alert)
        return is_new
