"""Training as a command: those who hear of a run are put together here."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.files import write_whole_text
from yoloyard.common.log import shown_lines
from yoloyard.config.overrides import checked_overrides
from yoloyard.config.settings import NEWEST, TrainConfig
from yoloyard.machines import environment
from yoloyard.planning.hours import Images
from yoloyard.training import run
from yoloyard.training.listeners.backup import Backup
from yoloyard.training.listeners.console import Console
from yoloyard.training.listeners.events import AlertRaised, Event, Listener, Result, RunStarted
from yoloyard.training.listeners.last_validation import LastValidation
from yoloyard.training.listeners.notify import Notifier
from yoloyard.training.listeners.results import Records
from yoloyard.training.listeners.status import Status
from yoloyard.training.listeners.trackers import TRACKERS, Tracker

NOTIFY = "YOLOYARD_NOTIFY"  # the variable that stands for --notify; other users of the host can't see it


def train(
    overrides: Mapping[str, Any],
    resume: str | Path | bool | None = None,
    on_event: Listener | Sequence[Listener] | None = None,
    transform: Callable[..., Any] | None = None,
) -> Result:
    """Train with a user's `overrides` of `TrainConfig`; `resume` names the run folder that goes on, True the newest.

    `on_event` is a function or several of them, which are called with each event. `transform` changes training
    images: `image, boxes, labels = transform(image, boxes, labels)`, or an Albumentations pipeline.
    Raises UsageError or UserError with what to do, Interrupted after Ctrl-C with everything saved.
    """
    own = on_event if isinstance(on_event, list | tuple) else [] if on_event is None else [on_event]
    for listener in own:
        if not callable(listener):
            raise UsageError(f"on_event must be a function of an event, not {listener!r:.80}")
    if isinstance(resume, bool):
        resume = NEWEST if resume else None
    overrides = checked_overrides(TrainConfig, overrides)
    address = overrides.pop("notify", None) or os.environ.get(NOTIFY)  # may hold a secret: nobody else sees it
    backup = Backup()
    console = Console(backup.status)
    listeners: list[Listener] = [Records(), Status(), console, write_environment, LastValidation()]
    listeners += [*map(Tracker, TRACKERS), *own, backup]
    notifiers = [Notifier(address)] if address else []  # after those who may raise an alert at the end
    listeners += notifiers
    result = None
    with shown_lines(console.say):
        try:
            with backup:
                result = run.train(overrides, resume, listeners, transform)
        except UserError as error:
            if result is not None:  # all went well but the copies, after the end of the run was told
                for notifier in notifiers:
                    notifier(AlertRaised(str(error), "backup"))
            raise
        return result


def write_environment(event: Event) -> None:
    """When a run starts, write facts about the host, its packages, the code and the data into `environment.json`."""
    if isinstance(event, RunStarted):
        setup = event.setup
        data = {"train": setup.train_index.facts(), "val": setup.val_index.facts()}
        facts = environment.facts(setup.device, setup.spec.precision, data, setup.folder)
        facts["samples"] = asdict(Images.of(setup.train_tiles, setup.val_tiles, setup.config))
        write_whole_text(setup.folder / "environment.json", json.dumps(facts, indent=1))
