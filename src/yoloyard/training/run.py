"""The way into a training run, the same for a new one, one that goes on, and a process that joins one."""

import dataclasses
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from yoloyard.common.device import choose_device, choose_precision
from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.files import RUN_MARK, RunLock
from yoloyard.common.log import shown_lines
from yoloyard.config.overrides import checked_overrides, with_overrides
from yoloyard.config.settings import NEWEST, TrainConfig, flat_settings
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.loading.limits import check_limit
from yoloyard.data.pixels.transform import Transform
from yoloyard.storage.address import is_address
from yoloyard.storage.fetch import fetch_run, read_note
from yoloyard.training.distributed.cluster import LAUNCH, become_worker, device_number, is_worker, place_here
from yoloyard.training.distributed.collectives import Team, agreed_precision, connect, meet_team
from yoloyard.training.distributed.hosts import compare_hosts
from yoloyard.training.distributed.launch import command
from yoloyard.training.distributed.meeting import meeting_of
from yoloyard.training.distributed.run_files import files_here
from yoloyard.training.distributed.watch import START_SECONDS, apart
from yoloyard.training.listeners.events import Listener, Listeners, Result
from yoloyard.training.setup.dataset import load_splits_again
from yoloyard.training.setup.settings import check_placement, resumed
from yoloyard.training.setup.setup import Setup, build, new_run
from yoloyard.training.spec import RunSpec
from yoloyard.training.state.checkpoint import Header, newest_header, newest_whole
from yoloyard.training.trainer import fit

LOST_SECONDS = 90.0  # within which a host that is cut off ends, and its lock with it
OF_A_PROCESS = ("device", "amp", "device_path", "hang_timeout")  # settings that it needs before it knows the run
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
    overrides = checked_overrides(TrainConfig, overrides)
    if "nodes" not in overrides:
        become_worker()
    if not is_worker():
        overrides, resume = to_this_host(overrides, resume)
        check_alone(overrides, resume)
    team = meet_team(overrides.get("hang_timeout", START_SECONDS))
    lines = nullcontext() if team.is_rank_0 else shown_lines(lambda line: None)
    with lines, team.watched(), RunLock() as lock:
        compare_hosts(team.watch, overrides)
        folder, header, begun = Path(), None, None
        if team.is_rank_0:
            overrides, resume = to_this_host(overrides, resume)
            begun = begun_folder(overrides)
            folder, header = find_run(overrides, begun if begun and _last_saved(begun) is not None else resume)
        saved = {name: flat_settings(header.spec.config)[name] for name in OF_A_PROCESS} if header else {}
        asked = with_overrides(TrainConfig(), team.watch.exchange("saved", saved)[0] | overrides)
        team.watch.hang_timeout = asked.hang_timeout
        device = choose_device(asked.device, device_number())
        connect(team, device)
        precision = agreed_precision(choose_precision(device, asked.amp, asked.device_path), team).name
        handed_in = None if transform is None else Transform(transform)
        setup: Setup | None = None
        with team.on_rank_0() as is_rank_0:
            if is_rank_0 and header is not None:
                lock.take(folder, 0.0 if begun is None else LOST_SECONDS)
                header = newest_whole(folder)  # since nobody else writes there
                spec = resumed(header.spec, overrides, team.size, folder, header.progress.epoch)
                setup = build(dataclasses.replace(spec, precision=precision), folder, device, handed_in)
                check_same_data(setup, header.spec.config, begun is not None)
            elif is_rank_0:
                setup = new_run(overrides, device, precision, team.size, handed_in, lock, begun)
            if setup is not None:
                setup.keep()
                if id_ := launch_id():
                    (setup.folder / RUN_MARK).write_text(id_)
        spec, folder, header = team.broadcast((setup.spec, setup.folder, header) if setup else None)
        of_rank_0 = [index.fingerprint() for index in (setup.train_index, setup.val_index)] if setup else None
        fingerprints = team.broadcast(of_rank_0)
        if "data" in overrides:  # may be elsewhere on each host
            here = dataclasses.replace(spec.config, data=os.path.abspath(overrides["data"]))
            spec = dataclasses.replace(spec, config=here)
        with files_here(team, folder, spec.kept_files) as kept:
            join = partial(joined, team, spec, folder, device, handed_in, kept, fingerprints)
            setup = team.first_of_host_first(lambda: setup or join())
        return fit(setup, Listeners(listeners if team.is_rank_0 else ()), team, header)


def joined(
    team: Team,
    spec: RunSpec,
    folder: Path,
    device: torch.device,
    transform: Transform | None,
    kept: Path,
    fingerprints: Sequence[str],
) -> Setup:
    """The setup of a process that joins a run of rank 0, whose splits have these `fingerprints`.

    Raises UserError if this host has other data, or what `build` raises.
    """
    splits = load_splits_again(read_data_yaml(Path(spec.config.data)), spec.config, spec.pixels)
    if team.watch.is_first_of_host:
        for split, index, fingerprint in zip(("train", "val"), splits, fingerprints, strict=True):
            if index.whole.fingerprint() != fingerprint:
                raise apart(
                    f"the {split} split of {spec.config.data} here is not that of rank 0: other images, sizes or "
                    "labels; copy the same data to each host"
                )
    return build(spec, folder, device, transform, splits=splits, kept=kept)


def check_alone(overrides: Mapping[str, Any], resume: str | Path | None) -> None:
    """Raise UsageError where a run wants other processes or hosts, which a launcher has to start."""
    place = place_here()
    meeting = meeting_of(overrides.get("nodes"), overrides.get("rendezvous"), place)
    header = find_run(overrides, resume)[1] if meeting.max_hosts == 1 else None
    count = num_processes(overrides, header, place.processes, meeting.max_hosts)
    if count > 1 or meeting.max_hosts > 1:
        line = shlex.join(command(overrides, None if resume is None else str(resume)))
        what = f"{count} processes" if meeting.max_hosts == 1 else "several hosts"
        raise UsageError(f"{what} can be started from a terminal only: yoloyard {line}")


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


def launch_id() -> str:
    """What names the launch that this process belongs to, for all its attempts; empty where nothing names it.

    torchrun's `--rdzv-id` has the default "none".
    """
    return os.environ.get(LAUNCH) or os.environ.get("TORCHELASTIC_RUN_ID", "none").removeprefix("none")


def begun_folder(overrides: Mapping[str, Any]) -> Path | None:
    """The run folder that an earlier attempt of this launch has begun on this host."""
    project, name = Path(overrides.get("project", TrainConfig().project)), launch_id()
    found = [mark.parent for mark in project.glob(f"*/{RUN_MARK}") if name and mark.read_text() == name]
    if LAUNCH not in os.environ:  # an id that a user gives to torchrun may be that of a former run
        found = [folder for folder in found if not (folder / "report.html").exists()]
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


@dataclasses.dataclass(frozen=True)
class RunHere:
    """What this host has of a run, for the agent that launches it."""

    overrides: Mapping[str, Any]
    resume: str | None

    def saved(self) -> int:
        """How many batches of it are saved here; -1 without a run folder."""
        folder = begun_folder(self.overrides)
        if folder is None and self.resume is None:
            return -1
        try:
            _, header = find_run(self.overrides, folder or self.resume)
        except UserError:
            return 0 if folder else -1
        return int(header.facts.get("engine", {}).get("number", 0)) if header else 0

    def fetch(self) -> bool:
        """Bring it here from its `--backup`; false without one. Raises UserError if there is nothing to bring."""
        if not self.overrides.get("backup"):
            return False
        _, folder = to_this_host(self.overrides, self.overrides["backup"])
        (Path(folder) / RUN_MARK).write_text(launch_id())
        return True


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


def check_same_data(setup: Setup, before: TrainConfig, is_begun: bool = False) -> None:
    """Raise UserError if a run came from another host, or names its data newly, and has not the same data here.

    So may one that was begun by this launch, where its hosts share a disk for it.
    """
    kept = setup.folder / "environment.json"  # of the last time that the run started
    came = read_note(setup.folder).get("fetched") is not None
    if not kept.exists() or not (came or is_begun or setup.config.data != before.data):
        return
    data = json.loads(kept.read_text(encoding="utf-8")).get("data") or {}
    for split, index in (("train", setup.train_index), ("val", setup.val_index)):
        if data.get(split, {}).get("sha256", index.fingerprint()) != index.fingerprint():
            raise apart(
                f"the {split} split of {setup.config.data} is not the one that the run began with: other images, sizes "
                "or labels; name the same data by --data, or start a new run with --weights"
            )


def num_processes(overrides: Mapping[str, Any], header: Header | None, of_cluster: str = "", hosts: int = 1) -> int:
    """How many processes the run wants on this host: as flags say, the cluster, or, on one host, as it had before.

    `of_cluster`: `Place.processes`. Raises UsageError if a device isn't there or `processes` disagrees.
    """
    saved = header.spec.config if header else TrainConfig()
    device = overrides.get("device", saved.device)
    devices = len(device.split(","))
    if overrides.get("strategy", saved.strategy) == "placement":
        check_placement(device, overrides.get("processes", 1) * hosts)
        return 1
    is_named = "device" in overrides or saved.strategy == "placement"
    count: int = overrides.get("processes", devices if is_named else saved.processes)
    if of_cluster and not {"processes", "device"} & overrides.keys():
        there = torch.accelerator.device_count() if of_cluster in ("auto", "gpu") else 1
        count = max(int(of_cluster) if of_cluster.isdecimal() else there, 1)
    elif hosts > 1 and "processes" not in overrides:  # those of a run are of all its hosts
        count = devices
    if devices > 1 and count != devices:
        raise UsageError(f"--device {device} names {devices} devices, but --processes says {count}; leave one out")
    for number in range(count):
        chosen = choose_device(device, number)
        if count > devices and chosen.index is not None and device not in ("auto", chosen.type):
            raise UsageError(f"--device {device} is one device; name one for each of the {count} processes")
    return count
