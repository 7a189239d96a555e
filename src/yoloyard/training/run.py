"""The two ways into a training run: a new one from the user's words, or one that goes on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yoloyard.common.device import choose_device
from yoloyard.common.errors import UsageError
from yoloyard.common.files import RunLock, restore_whole_folder, whole_folder
from yoloyard.common.log import shown_lines
from yoloyard.config.settings import NEWEST, TrainConfig, checked_overrides
from yoloyard.data.loading.descriptors import check_limit
from yoloyard.training.distributed.collectives import agreed_precision, is_launched, join_team, local_rank
from yoloyard.training.distributed.launch import command, processes_wanted
from yoloyard.training.listeners.monitor import Event, Monitor
from yoloyard.training.setup.setup import Setup, prepare, prepare_resume, rebuild
from yoloyard.training.state.checkpoint import read_facts
from yoloyard.training.trainer import Result, fit


def train(
    words: Mapping[str, Any],
    resume: str | Path | bool | None = None,
    on_event: Callable[[Event], object] | None = None,
    transform: Callable[..., Any] | None = None,
) -> Result:
    """Train with the user's `words` (see `config.TrainConfig`); `resume` names the run folder that goes on; True is
    the newest one.

    `transform(image, boxes, labels)` or an Albumentations pipeline changes training images (see `data.transform`).
    In several processes each of them calls this. Raises UsageError or UserError with what to do, Interrupted after
    Ctrl-C.
    """
    check_limit()
    if on_event is not None and not callable(on_event):
        raise UsageError(f"on_event must be a function of an event, not {on_event!r:.80}")
    if isinstance(resume, bool):
        resume = NEWEST if resume else None
    words = checked_overrides(TrainConfig, words)
    folder, facts = checkpoint_of(words, resume)
    count = num_processes(words, facts)
    if count > 1 and not is_launched():
        line = shlex.join(command(words, None if resume is None else str(resume)))
        raise UsageError(f"{count} processes can be started from a terminal only: yoloyard {line}")
    device = choose_device(device_override(words, facts), local_rank())
    team = join_team(device, hang_timeout(words, facts))
    monitor = Monitor(on_event if team.is_rank_0 else None, silent=not team.is_rank_0)
    with shown_lines(monitor.say), team.watched(), RunLock() as lock:
        setup: Setup | None = None
        with team.on_rank_0() as is_rank_0:
            if is_rank_0 and facts is not None:
                lock.take(folder)
                restore_whole_folder(folder / "checkpoints" / "last")
                facts = read_facts(folder / "checkpoints" / "last")  # since nobody else writes there
                setup = prepare_resume(folder, facts, words, device, team.size, transform)
            elif is_rank_0:
                setup = prepare(words, device, team.size, transform, lock)
        shared = team.broadcast((setup.folder, setup.facts(), setup.config) if setup else None)
        facts = team.broadcast(facts)
        with team.long_work():
            setup = setup or rebuild(*shared, device, transform)
        setup.precision = agreed_precision(setup.precision, team)
        monitor.folder = setup.folder
        return fit(setup, monitor, team, facts)


def checkpoint_of(words: Mapping[str, Any], resume: str | Path | None) -> tuple[Path, dict[str, Any] | None]:
    """The folder of the run that goes on and the facts of its last checkpoint; no facts for a new run.

    `words` here and below are checked ones.
    """
    if resume is None:
        return Path(), None
    if not isinstance(resume, str | os.PathLike):
        raise UsageError(f"resume must name a run folder, not {resume!r:.80}")
    if resume == NEWEST:
        folder = newest_run(Path(words.get("project", "runs")))
    else:  # the run folder, or a weight file or checkpoint in it
        named = Path(os.path.expanduser(resume))
        places = (named, *named.parents[:2])
        folder = next((each for each in places if whole_folder(each / "checkpoints" / "last").exists()), named)
    return folder, read_facts(folder / "checkpoints" / "last")


def num_processes(words: Mapping[str, Any], facts: Mapping[str, Any] | None) -> int:
    """How many processes the run wants. Raises UsageError if they can't be."""
    return processes_wanted(words, facts["config"] if facts else {})


def device_override(words: Mapping[str, Any], facts: Mapping[str, Any] | None) -> str:
    """What was said of the device: now, or when the run that goes on began."""
    saved = facts["config"]["device"] if facts else TrainConfig().device
    return str(words.get("device", saved))


def hang_timeout(words: Mapping[str, Any], facts: Mapping[str, Any] | None) -> float:
    """How many seconds a process may keep the others waiting."""
    saved = facts["config"].get("hang_timeout") if facts else None  # checkpoints of earlier versions don't know it
    return float(words.get("hang_timeout", saved or TrainConfig().hang_timeout))


def newest_run(project: Path) -> Path:
    """The run of `project` that was saved last."""
    folders = (whole_folder(path / "checkpoints" / "last") for path in project.glob("*"))
    states = sorted(
        (state for folder in folders if (state := folder / "state.json").exists()),
        key=lambda path: path.stat().st_mtime,
    )
    if not states:
        raise UsageError(f"there is no run to resume in {project}/; say --resume FOLDER")
    return states[-1].parents[2]
