"""The way into a training run, the same for a new one, one that goes on, and a process that joins one."""

import dataclasses
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from yoloyard.common.device import choose_device, choose_precision
from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.files import RunLock
from yoloyard.common.log import shown_lines
from yoloyard.config.overrides import checked_overrides, with_overrides
from yoloyard.config.settings import NEWEST, TrainConfig
from yoloyard.data.loading.limits import check_limit
from yoloyard.data.pixels.transform import Transform
from yoloyard.storage.address import is_address
from yoloyard.storage.fetch import fetch_run, read_note
from yoloyard.training.distributed.collectives import agreed_precision, is_launched, join_team, local_rank
from yoloyard.training.distributed.launch import command
from yoloyard.training.listeners.events import Listener, Listeners, Result
from yoloyard.training.setup.settings import resumed
from yoloyard.training.setup.setup import Setup, build, new_run
from yoloyard.training.state.checkpoint import Header, newest_header, newest_whole
from yoloyard.training.strategies.pipeline import check_pipeline
from yoloyard.training.trainer import fit

Resume = TypeVar("Resume", bound=str | Path | None)  # what names the run that goes on


def train(
    overrides: Mapping[str, Any],
    resume: str | Path | None = None,
    listeners: Sequence[Listener] = (),
    transform: Callable[..., Any] | None = None,
) -> Result:
    """Train with a user's `overrides` of `TrainConfig`; `resume` names the run folder that goes on, or the address of
    its copies, or is NEWEST.

    Each process of a run calls this; rank 0 alone calls the `listeners` and logs lines for the user. `transform` is one
    of `data.pixels.transform`. Raises UsageError or UserError with what to do, Interrupted after Ctrl-C.
    """
    check_limit()
    overrides, resume = to_this_host(checked_overrides(TrainConfig, overrides), resume)
    folder, header = find_run(overrides, resume)
    count = num_processes(overrides, header)
    if count > 1 and not is_launched():
        line = shlex.join(command(overrides, None if resume is None else str(resume)))
        raise UsageError(f"{count} processes can be started from a terminal only: yoloyard {line}")
    asked = with_overrides(header.spec.config if header else TrainConfig(), overrides)
    device = choose_device(asked.device, local_rank())
    team = join_team(device, asked.hang_timeout)
    lines = nullcontext() if team.is_rank_0 else shown_lines(lambda line: None)
    with lines, team.watched(), RunLock() as lock:
        precision = agreed_precision(choose_precision(device, asked.amp, asked.device_path), team).name
        handed_in = None if transform is None else Transform(transform)
        setup: Setup | None = None
        with team.on_rank_0() as is_rank_0:
            if is_rank_0 and header is not None:
                lock.take(folder)
                header = newest_whole(folder)  # since nobody else writes there
                spec = resumed(header.spec, overrides, team.size, folder, header.progress.epoch)
                setup = build(dataclasses.replace(spec, precision=precision), folder, device, handed_in)
                check_same_data(setup, header.spec.config)
                if setup.config.strategy == "pipeline" and team.size > 1:
                    check_pipeline(setup.config, overrides, setup.detector, setup.precision, team.size)
            elif is_rank_0:
                setup = new_run(overrides, device, precision, team.size, handed_in, lock)
            if setup is not None:
                setup.keep()
        spec, folder, header = team.broadcast((setup.spec, setup.folder, header) if setup else None)
        with team.watch.long_work():
            setup = setup or build(spec, folder, device, handed_in)
        return fit(setup, Listeners(listeners if team.is_rank_0 else ()), team, header)


def find_run(overrides: Mapping[str, Any], resume: str | Path | None) -> tuple[Path, Header | None]:
    """The folder of the run that goes on and its checkpoint's header. Raises UsageError or UserError without one."""
    if resume is None:
        return Path(), None
    if not isinstance(resume, str | os.PathLike):
        raise UsageError(f"resume must name a run folder, not {resume!r:.80}")
    if resume == NEWEST:
        project = Path(overrides.get("project", TrainConfig().project))
        ages = {folder: age for folder in project.glob("*") if (age := _last_saved(folder)) is not None}
        if not ages:
            raise UsageError(f"there is no run to resume in {project}/; say --resume FOLDER")
        folder = max(ages, key=lambda path: ages[path])
    else:  # the run folder, or a weights file or checkpoint in it
        named = Path(os.path.expanduser(resume))
        places = (named, *named.parents[:2])
        folder = next((each for each in places if _last_saved(each) is not None), named)
        if not folder.exists():
            raise UsageError(f"there is no run {folder}; `yoloyard runs` lists those that are there")
    return folder, newest_header(folder)


def _last_saved(run: Path) -> float | None:
    """When the newest checkpoint in a run folder was written; None without one."""
    times = []
    for folder in run.glob("checkpoints/*"):
        with suppress(OSError):  # another run may replace it at this moment
            times += [(folder / "state.json").stat().st_mtime] if folder.suffix != ".tmp" else []
    return max(times, default=None)


def to_this_host(overrides: Mapping[str, Any], resume: Resume) -> tuple[dict[str, Any], Resume | str]:
    """Where `resume` is an address, fetch its run: the run folder, and overrides by which it is copied there again.

    Raises UsageError or UserError.
    """
    if not isinstance(resume, str) or not is_address(resume):
        return dict(overrides), resume
    project = Path(overrides.get("project", TrainConfig().project))
    folder = fetch_run(resume, overrides.get("backup_endpoint"), project)
    return {"backup": resume, **overrides}, str(folder)


def check_same_data(setup: Setup, before: TrainConfig) -> None:
    """Raise UserError if a run came from another host, or names its data newly, and has not the same data here."""
    kept = setup.folder / "environment.json"  # of the last time that the run started
    came = read_note(setup.folder).get("fetched") is not None
    if not kept.exists() or not (came or setup.config.data != before.data):
        return
    data = json.loads(kept.read_text(encoding="utf-8")).get("data") or {}
    for split, index in (("train", setup.train_index), ("val", setup.val_index)):
        if data.get(split, {}).get("sha256", index.fingerprint()) != index.fingerprint():
            raise UserError(
                f"the {split} split of {setup.config.data} is not the one that the run began with: other images, sizes "
                "or labels; name the same data by --data, or start a new run with --weights"
            )


def num_processes(overrides: Mapping[str, Any], header: Header | None) -> int:
    """How many processes the run wants. Raises UsageError if a device isn't there or `processes` disagrees."""
    saved = header.spec.config if header else TrainConfig()
    device = overrides.get("device", saved.device)
    devices = len(device.split(","))
    count: int = overrides.get("processes", devices if "device" in overrides else saved.processes)
    if devices > 1 and count != devices:
        raise UsageError(f"--device {device} names {devices} devices, but --processes says {count}; leave one out")
    for number in range(count):
        chosen = choose_device(device, number)
        if count > devices and chosen.index is not None and device not in ("auto", chosen.type):
            raise UsageError(f"--device {device} is one device; name one for each of the {count} processes")
    return count
