"""The rules of the monitor on made-up figures, and how often it tells."""

import dataclasses
import itertools
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

from yoloyard.config.settings import OptimizerConfig
from yoloyard.training.engine.engine import Figures
from yoloyard.training.engine.schedule import Schedule
from yoloyard.training.listeners.events import AlertRaised, Record
from yoloyard.training.monitor.monitor import CALM_EPOCHS, Monitor

SCHEDULE = Schedule(OptimizerConfig(optimizer="SGD", warmup_epochs=1.0), epochs=1000, batches_per_epoch=10, batch=8)


class Watched:
    """A monitor, what it has told, and steps for it."""

    def __init__(self) -> None:
        self.told: list[AlertRaised] = []
        self.monitor = Monitor(self.told.append, SCHEDULE.batches_per_epoch)
        self.number = 0

    def step(
        self, loss: float = 5.0, norm: float = 1.0, update: float = 1e-3, labels: float = 0.5, scale: float = 1.0
    ) -> Any:
        """One step; its norm varies a little, as they do."""
        varied = norm * (1 + 0.1 * math.sin(self.number))
        figures = Figures(self.number, (loss / 2, loss / 2), varied, scale, update, labels)
        self.number += 1
        return self.monitor.look_at_step(figures, SCHEDULE)

    def steps(self, count: int, **words: float) -> "Watched":
        """So many of them."""
        for _ in range(count):
            self.step(**words)
        return self

    def epoch(self, loss: float, figure: float, map50: float | None = None, **record: float) -> None:
        """The end of an epoch; `figure` is its map50_95."""
        number = len(self.monitor.history.epochs) + 1
        found: Record = {"epoch": number, "train/box": loss, "val/map50_95": figure, **record}
        classes = [
            SimpleNamespace(name="a", boxes=9, map50=0.9),
            SimpleNamespace(name="b", boxes=9, map50=record.get("b", 0.9)),
        ]
        metrics: Any = SimpleNamespace(map50=2 * figure if map50 is None else map50, classes=classes)
        self.monitor.look_at_epoch(found, metrics)

    @property
    def kinds(self) -> list[str]:
        """The kinds of what was told."""
        return [alert.kind for alert in self.told]


def test_a_run_that_goes_well_raises_nothing() -> None:
    run = Watched()
    for number in range(40):
        run.steps(10, loss=8.0 - 0.1 * number, labels=max(0.9 - 0.02 * number, 0.4))
        run.epoch(8.0 - 0.1 * number, 0.02 * number)
    assert run.kinds == []


def test_a_gradient_far_longer_than_those_before_explodes() -> None:
    run = Watched().steps(120)
    run.step(norm=1e4)
    (alert,) = run.told
    assert alert.kind == "exploding-gradients"
    assert "norm 1.06e+04 where 0.997 is usual" in alert.evidence
    assert run.monitor.history.spikes == [120]


def test_a_gradient_that_is_short_or_comes_before_anything_is_learned_does_not_explode() -> None:
    run = Watched().steps(120, norm=0.02)
    run.step(norm=2.0)
    slow = Watched().steps(400, labels=1.0, update=5e-4)
    slow.step(norm=1e4, labels=1.0)
    assert run.kinds == slow.kinds == []


def test_a_loss_that_returns_to_that_of_other_labels_is_a_divergence() -> None:
    run = Watched().steps(120)
    assert run.step() is None
    found = [run.step(loss=9.0, labels=1.0) for _ in range(15)]
    assert found[-1].kind == "diverged"
    assert run.kinds == ["diverged"]
    assert run.monitor.history.last_good(run.number) <= 120


def test_a_loss_that_rises_before_anything_is_learned_is_none() -> None:
    run = Watched().steps(60, loss=0.3, labels=1.0).steps(60, loss=9.0, labels=1.0).steps(60, loss=8.0, labels=0.5)
    assert "diverged" not in run.kinds


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ({"update": 0.0}, "frozen"),
        ({"scale": 2.0**-3}, "scaler-collapsing"),
    ],
)
def test_figures_of_steps_have_limits(words: dict[str, float], kind: str) -> None:
    run = Watched().steps(60, **words)
    assert run.kinds == [kind]
    assert run.told[0].evidence
    assert run.told[0].remedy


@pytest.mark.parametrize(
    ("kind", "epochs"),
    [
        ("rate-too-low", [{"loss": 8.0, "figure": 0.0, "map50": 0.2}] * 6),
        ("plateau", [{"loss": 3.0, "figure": 0.4}] * 30),
        ("overfitting", [{"loss": 3.0 - 0.1 * n, "figure": 0.5 if n == 4 else 0.3} for n in range(17)]),
        ("validation-far-below-training", [{"loss": 3.0 - 0.02 * n, "figure": 0.001} for n in range(22)]),
        ("class-never-found", [{"loss": 3.0 - 0.02 * n, "figure": 0.3 + 0.01 * n, "b": 0.0} for n in range(24)]),
        (
            "starved",
            [{"loss": 3.0 - n, "figure": 0.3, "speed/waiting_fraction": 0.8, "speed/seconds": 60.0} for n in range(2)],
        ),
        ("rate-too-high", [{"loss": 3.0 * 1.2**n, "figure": 0.3} for n in range(5)]),
        ("labels-do-not-fit", [{"loss": 9.0, "figure": 0.01}]),
    ],
)
def test_figures_of_epochs_have_limits(kind: str, epochs: list[dict[str, float]]) -> None:
    updates = {"rate-too-low": 1e-6, "labels-do-not-fit": 5e-3}
    run = Watched().steps(200, update=updates.get(kind, 1e-3), labels=0.99 if kind == "labels-do-not-fit" else 0.5)
    for epoch in epochs:
        run.epoch(**epoch)
    assert run.kinds == [kind]


def test_large_updates_that_lead_nowhere_are_those_of_a_rate_that_is_too_high() -> None:
    run = Watched().steps(60, update=0.02, labels=0.99)
    run.epoch(9.0, 0.0)
    assert "rate-too-high" in run.kinds


def test_large_updates_that_lead_somewhere_are_no_sign_of_a_high_rate() -> None:
    """Small networks that SGD trains well at its usual rate move by 2 % of their length."""
    run = Watched().steps(60, update=0.02)
    run.epoch(9.0, 0.0)
    assert run.kinds == []


@pytest.mark.parametrize(
    ("ratios", "update", "map50"),
    [((0.7, 1.6, 1.0), 5e-3, 0.0), ((0.99, 1.0, 1.01), 5e-4, 0.0), ((0.99, 1.0, 1.01), 5e-3, 0.6)],
    ids=["a slow start", "a network that has hardly moved", "objects always in the same place"],
)
def test_labels_may_fit_although_those_of_other_images_give_the_same_loss(
    ratios: tuple[float, ...], update: float, map50: float
) -> None:
    run = Watched()
    for ratio in itertools.islice(itertools.cycle(ratios), 200):
        run.step(labels=ratio, update=update)
    run.epoch(9.0, map50 / 2)
    assert run.kinds == []


def test_a_class_that_is_found_late_and_a_figure_that_recovers_are_no_alerts() -> None:
    run = Watched().steps(80)
    for number in range(30):
        figure = 0.12 if number == 5 else 0.05 if number < 12 else 0.3
        run.epoch(8.0 - 0.1 * number, figure, b=0.0 if number < 18 else 0.5)
    assert run.kinds == []


def test_a_validation_set_without_boxes_says_nothing_about_the_network() -> None:
    run = Watched().steps(80)
    for number in range(30):
        run.monitor.look_at_epoch(
            {"epoch": number, "train/box": 8.0 - 0.1 * number, "val/map50_95": 0.0},
            SimpleNamespace(map50=0.0, classes=[SimpleNamespace(name="a", boxes=0, map50=0.0)]),  # type: ignore[arg-type]
        )
    assert run.kinds == []


def test_a_kind_is_told_again_only_after_it_was_away_for_some_epochs() -> None:
    run = Watched().steps(60, scale=0.5).steps(5, scale=64.0).steps(20, scale=0.5)
    assert run.kinds == ["scaler-collapsing"]
    run.steps(CALM_EPOCHS * SCHEDULE.batches_per_epoch + 1, scale=64.0).steps(5, scale=0.5)
    assert run.kinds == ["scaler-collapsing"] * 2


def test_a_monitor_that_goes_on_from_its_state_raises_the_same_alerts() -> None:
    whole, first, second = Watched(), Watched(), Watched()
    for run, steps in ((whole, 250), (first, 130)):
        for number in range(steps):
            run.step(norm=1e4 if number in (125, 200) else 1.0, loss=5.0 if number < 220 else 40.0)
    second.monitor.load_state_dict(json.loads(json.dumps(first.monitor.state_dict())))
    second.number = 130
    for number in range(130, 250):
        second.step(norm=1e4 if number in (125, 200) else 1.0, loss=5.0 if number < 220 else 40.0)
    assert [alert.line for alert in whole.told] == [alert.line for alert in first.told + second.told]
    assert {"exploding-gradients", "diverged"} <= set(whole.kinds)


def test_after_a_rollback_the_figures_are_forgotten_and_not_what_was_told() -> None:
    run = Watched().steps(120)
    before = run.monitor.state_dict()
    run.steps(30, loss=40.0)
    assert run.kinds == ["diverged"]
    run.monitor.load_state_dict(before)
    run.number = 120
    assert [run.step() for _ in range(5)] == [None] * 5
    found = [alert for alert in (run.step(loss=40.0) for _ in range(30)) if alert]
    assert found
    assert run.kinds == ["diverged"]


def test_learning_rates_are_halved_as_a_whole() -> None:
    halved = dataclasses.replace(SCHEDULE, rate_factor=0.5)
    for number, start in itertools.product((0, 3, 10, 500), (0.0, 0.1)):
        assert halved.rate(number, start) == SCHEDULE.rate(number, start) / 2
