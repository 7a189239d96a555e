"""The monitor of a run: it hears the figures of each step and epoch on the host, and raises alerts.

All processes have one, and all hear the same losses, norms and figures, so that they agree on a divergence. What a
process measures by itself (its waiting) decides nothing but an alert, which rank 0 alone tells.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.training.engine.engine import Figures
from yoloyard.training.engine.schedule import Schedule
from yoloyard.training.listeners.events import AlertRaised, Record
from yoloyard.training.monitor.history import History
from yoloyard.training.monitor.rules import EPOCH_RULES, START_RULES, STEP_RULES, Rule, diverged
from yoloyard.training.setup.setup import Setup

CALM_EPOCHS = 10  # without a finding, after which the next one of its kind is told again


class Monitor:
    """Raises alerts by `tell`; each kind once, and again only after it was away for some epochs."""

    def __init__(self, tell: Callable[[AlertRaised], object], batches_per_epoch: int) -> None:
        self._tell, self._calm = tell, CALM_EPOCHS * batches_per_epoch
        self.history = History()
        self._last_found: dict[str, int] = {}  # by kind: the batch of the run

    def look_at_start(self, setup: Setup) -> None:
        """Look at a run before its first step."""
        self._apply(START_RULES, setup)

    def look_at_step(self, figures: Figures, schedule: Schedule) -> AlertRaised | None:
        """Look at a step that was not a bad one; the alert if the run diverges."""
        self.history.add_step(figures, schedule)
        return next((alert for alert in self._apply(STEP_RULES, self.history) if alert.kind == diverged.kind), None)

    def look_at_epoch(self, record: Record, metrics: Metrics | None) -> None:
        """Look at an epoch; `metrics` where it was validated."""
        self.history.add_epoch(record, metrics)
        self._apply(EPOCH_RULES, self.history)

    def tell(self, alert: AlertRaised, number: int) -> bool:
        """Raise `alert` of batch `number`, if its kind was not found for some epochs; was it told?"""
        before = self._last_found.get(alert.kind)
        self._last_found[alert.kind] = max(number, before or 0)
        is_new = before is None or number - before > self._calm
        if is_new:
            self._tell(alert)
        return is_new

    def state_dict(self) -> dict[str, Any]:
        """What it has seen and told, as JSON."""
        return {"history": asdict(self.history), "last_found": dict(self._last_found)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; what was told since then counts as told."""
        self.history.load_state_dict(state.get("history", {}))
        self._last_found = {**state.get("last_found", {}), **self._last_found}

    def _apply(self, rules: Sequence[Rule], source: Any) -> list[AlertRaised]:
        found = [(rule, evidence) for rule in rules if (evidence := rule.evidence(source))]
        alerts = [AlertRaised(rule.message, rule.kind, evidence, rule.remedy) for rule, evidence in found]
        for alert in alerts:
            self.tell(alert, self.history.number)
        return alerts
