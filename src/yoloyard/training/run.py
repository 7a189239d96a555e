"""The two ways into a training run: a new one from the user's words, or one that goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yoloyard.config import NEWEST
from yoloyard.errors import UsageError
from yoloyard.training.checkpoint import read_facts
from yoloyard.training.monitor import Event, Monitor
from yoloyard.training.setup import prepare, prepare_resume
from yoloyard.training.trainer import Result, fit


def train(
    words: Mapping[str, Any],
    resume: str | Path | None = None,
    on_event: Callable[[Event], object] | None = None,
    transform: Callable[..., Any] | None = None,
) -> Result:
    """Train with the user's `words` (see `config.TrainConfig`); `resume` names the run folder that goes on.

    `transform(image, boxes, labels)` or an Albumentations pipeline changes training pictures (see `data.transform`).
    Raises UsageError or UserError with what to do, Interrupted after Ctrl-C.
    """
    monitor = Monitor(on_event)
    if resume is None:
        setup = prepare(words, monitor.say, transform)
        monitor.folder = setup.folder
        return fit(setup, monitor)
    folder = newest_run(Path(words.get("project", "runs"))) if resume == NEWEST else Path(resume)
    facts = read_facts(folder / "checkpoints" / "last")
    setup = prepare_resume(folder, facts, words, monitor.say, transform)
    monitor.folder = folder
    return fit(setup, monitor, facts)


def newest_run(project: Path) -> Path:
    """The run of `project` that was saved last."""
    states = sorted(project.glob("*/checkpoints/last/state.json"), key=lambda path: path.stat().st_mtime)
    if not states:
        raise UsageError(f"there is no run to resume in {project}/; say --resume FOLDER")
    return states[-1].parents[2]
