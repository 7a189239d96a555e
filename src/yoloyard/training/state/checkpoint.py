"""A run at one moment: a snapshot in host memory, a checkpoint on disk, a folder that is replaced whole."""

import copy
import errno
import itertools
import json
import logging
import math
import mmap
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from yoloyard.common.errors import UserError
from yoloyard.common.files import link_or_copy, restore_whole_folder, whole_folder, write_whole_folder
from yoloyard.training.engine.engine import Engine
from yoloyard.training.spec import RunSpec
from yoloyard.training.state.manifest import damage, write_manifest
from yoloyard.training.state.randomness import RandomNumbers

log = logging.getLogger(__name__)

FORMAT = 4  # 3 has no manifest; 2 has its parts under other names
TENSOR_PARTS = ("model", "ema", "optimizer", "gradients")  # of the engine; files even where they are empty


class DamagedError(UserError):
    """A checkpoint is not as it was written."""


Snapshot = dict[str, dict[str, Any]]  # by part: tensors on the host, all else JSON; nothing in it changes any more


@dataclass
class Progress:
    """How far a run has come. Epochs are counted from 0 here; what users see begins with 1."""

    epoch: int = 0
    position: int = 0  # samples of this epoch that all processes have consumed
    bad_steps: int = 0  # in a row
    best: float | None = None
    best_epoch: int = -1
    seconds: float = 0.0  # of training and validation up to now
    planned_epochs: int = 0  # that fit into `--time`; 0: as configured
    rollbacks: int = 0  # after a divergence; each has halved the learning rate
    left_out: list[int] = field(default_factory=list)  # positions in the index; other images take their places

    @property
    def place(self) -> str:
        """How far it is, for messages."""
        return f"epoch {self.epoch + 1}, after {self.position} images of it"

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from these fields. Raises TypeError for a name that is unknown."""
        vars(self).update(vars(Progress(**state)))


@dataclass(frozen=True)
class Header:
    """The JSON part of a checkpoint."""

    folder: Path
    progress: Progress
    facts: Mapping[str, Any]  # all of it

    @property
    def spec(self) -> RunSpec:
        """What decides the run. Format 2 has it among other keys."""
        return RunSpec.from_json(self.facts.get("spec", self.facts))


def snapshot_of(
    spec: Mapping[str, Any],
    engine: Engine,
    progress: Progress,
    random_states: Sequence[Mapping[str, Any]],
    monitor: Mapping[str, Any] | None = None,
    keeps: bool = True,
) -> Snapshot:
    """All of a run at this moment; `random_states` are those of all processes by rank. Waits for the device.

    All processes call this. One that has `keeps` off only hands over its shards, and gets an empty snapshot.
    """
    parts = {"spec": spec, "progress": asdict(progress), "monitor": monitor or {}, **engine.state_dict()}
    parts |= {f"random-{rank}": state for rank, state in enumerate(random_states)}
    snapshot: Snapshot = {name: {} for name in parts} if keeps else {}
    for name, part in parts.items():
        for key, value in part.items():
            value = engine.strategy.whole(value) if isinstance(value, Tensor) else value  # one at a time on the device
            if keeps:
                snapshot[name][key] = _on_host(value)
    return snapshot


def write(content: Snapshot, folder: Path, good_until: float = math.inf) -> None:
    """Write a snapshot into `folder`, whole or not at all; any thread may do so. The one there becomes `previous`.

    It does not if it is of a later batch than `good_until`, so that a run that diverges can go back to `previous`.
    Raises UserError if it can't be written; all that was there before then stays.
    """
    previous = folder.with_name("previous")
    try:
        is_good = _number(read_header(folder)) <= good_until
    except UserError:  # there is none, or a damaged one
        is_good = False

    def write_parts(temporary: Path) -> None:
        facts: dict[str, Any] = {"format": FORMAT}
        for name, part in content.items():
            tensors = {key: value for key, value in part.items() if isinstance(value, Tensor)}
            if tensors or name in TENSOR_PARTS:
                _save_tensors(tensors, temporary / f"{name}.safetensors")
            if rest := {key: value for key, value in part.items() if key not in tensors}:
                facts[name] = rest
        (temporary / "state.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        write_manifest(temporary)

    write_whole_folder(folder, write_parts, previous if is_good or not previous.exists() else None)


def copy_checkpoint(folder: Path, copy: Path, keep: int) -> None:
    """Keep `folder` under the name `copy`, epoch-N, and of those up to this number the last `keep`."""

    def link_all(temporary: Path) -> None:
        for file in folder.iterdir():
            link_or_copy(file, temporary / file.name)

    write_whole_folder(copy, link_all)
    paths = copy.parent.glob("epoch-*")
    epochs = {path: int(number) for path in paths if (number := path.name.removeprefix("epoch-")).isdecimal()}
    # A higher number is of a future that the run has gone back from.
    former = sorted((path for path in epochs if epochs[path] <= epochs[copy]), key=epochs.__getitem__)
    for old in former[:-keep]:
        shutil.rmtree(old)


def read_header(folder: Path) -> Header:
    """The JSON part of a checkpoint, which may be about to be replaced.

    Raises DamagedError if it can't be read, UserError if another version of the format is needed.
    """
    place = whole_folder(folder)
    try:
        facts: dict[str, Any] = json.loads((place / "state.json").read_bytes())
        version = int(facts["format"])
        if version > FORMAT:
            raise UserError(
                f"{folder} has checkpoint format {version}, this version reads 2 to {FORMAT}: use a newer one"
            )
        if version == FORMAT and (problem := damage(place, ["state.json"])):
            raise DamagedError(f"{folder} is damaged: {problem}")
        progress = {name: value for name, value in facts["progress"].items() if name != "last_update"}  # of format 2
        return Header(folder, Progress(**progress), facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"the checkpoint {folder} can't be read ({error})") from error


def newest_header(run: Path) -> Header:
    """Of the newest checkpoint of a run whose JSON part can be read. Raises UserError if there is none."""
    return _first(run / "checkpoints", lambda header: "")


def newest_whole(run: Path) -> Header:
    """The newest checkpoint of a run that is whole; logs which newer ones are damaged, and in what.

    A damaged `last` gets the name `damaged`, so that the next save keeps a whole one as `previous`. No one else may
    write there. Raises UserError if none is whole.
    """
    folder = run / "checkpoints"
    restore_whole_folder(folder / "last")
    wrong: list[str] = []
    header = _first(folder, _damage, wrong)
    for line in wrong:
        log.warning(f"{line}; going on from {header.folder.name} instead, of {header.progress.place}")
    if header.folder.name != "last" and (folder / "last").exists():
        shutil.rmtree(folder / "damaged", ignore_errors=True)
        (folder / "last").rename(folder / "damaged")
    return header


def gone_back(run: Path, number: int, or_oldest: bool) -> Header | None:
    """Go back to the newest whole checkpoint of a run from before its batch `number`; None if there is none.

    Short epochs may leave only later ones; of them the oldest if `or_oldest`. Newer ones are removed: no later save may
    take them for good.
    """
    folder, later = run / "checkpoints", list[Header]()

    def problem_of(header: Header) -> str:
        if (problem := _damage(header)) or _number(header) <= number:
            return problem
        later.append(header)
        return "it is of a later batch"

    try:
        header = _first(folder, problem_of)
    except UserError:
        if not later or not or_oldest:
            return None
        header = min(later, key=_number)
    for name in itertools.takewhile(lambda each: each != header.folder.name, ("last", "previous")):
        shutil.rmtree(folder / name, ignore_errors=True)
    return header


def retire(run: Path) -> None:
    """Put the checkpoints of an earlier run in this folder aside, so that no run goes on from those of another."""
    if (folder := run / "checkpoints").exists():
        aside = run / "checkpoints-before"
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def _damage(header: Header) -> str:
    """What is wrong with a checkpoint; earlier formats have no manifest that could say it."""
    return "" if header.facts["format"] < FORMAT else damage(header.folder)


def _number(header: Header) -> int:
    """The batch of the run that comes after a checkpoint; 0 where an earlier format does not say it."""
    return int(header.facts.get("engine", {}).get("number", 0))


def _first(folder: Path, problem_of: Callable[[Header], str], wrong: list[str] | None = None) -> Header:
    """The newest checkpoint in `folder` without a problem; `wrong` gets what those before it have.

    Raises UserError if there is none.
    """
    problems = [] if wrong is None else wrong
    copies = sorted((path.name for path in folder.glob("epoch-*")), reverse=True)
    for place in (folder / name for name in ("last", ".last.old", "previous", *copies)):
        if not place.exists():
            continue
        try:
            header = read_header(place)
            if not (problem := problem_of(header)):
                return header
            problems.append(f"{place} is damaged: {problem}")
        except DamagedError as error:
            problems.append(str(error))
    reasons = f" ({'; '.join(problems)})" if problems else ""
    raise UserError(f"there is no whole checkpoint in {folder}{reasons}; start the run again")


def restore(header: Header, engine: Engine, progress: Progress, rank: int = 0) -> None:
    """Put a checkpoint back, with the random numbers of process `rank`, if it had one. Raises UserError if it can't."""
    content = read(header, engine, rank)
    try:
        put_back(content, engine, progress)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the checkpoint {header.folder} can't be restored: {error}") from error


def read(header: Header, engine: Engine, rank: int = 0) -> Snapshot:
    """A checkpoint for `put_back`, in process `rank`. Raises UserError if it can't be read."""
    try:
        parts = {name: _read(header, name) for name in TENSOR_PARTS}
        if header.facts["format"] == 2:
            parts["engine"], numbers = _read_format_2(header, engine, rank)
        else:
            parts["engine"] = _read(header, "engine")
            numbers = _read(header, f"random-{rank}") if f"random-{rank}" in header.facts else {}
        own = {"progress": asdict(header.progress), "random-0": numbers}
        return parts | own | {"monitor": header.facts.get("monitor", {})}
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"the checkpoint {header.folder} can't be restored: {error}") from error


def put_back(content: Snapshot, engine: Engine, progress: Progress) -> None:
    """Go on from `content`, whose `random-0` are this process's random numbers, and which stays as it is.

    Raises KeyError, TypeError, ValueError or RuntimeError if it is of another run.
    """
    engine.load_state_dict(content)
    progress.load_state_dict(content["progress"])
    if content["random-0"]:
        RandomNumbers(engine.device).load_state_dict(content["random-0"])


def _on_host(value: Any) -> Any:
    """A copy that nothing else shares. Tensors lie apart from the heap, in which they would leave holes."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if not value.numel():
        return torch.empty(value.shape, dtype=value.dtype)
    memory = mmap.mmap(-1, value.numel() * value.element_size())
    flat = torch.frombuffer(memory, dtype=value.dtype, count=value.numel())
    return flat.view(value.shape).copy_(value.detach())


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raises OSError, which safetensors has as a text only."""
    try:
        safetensors.torch.save_file(tensors, path)
    except safetensors.SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error), str(path)) from error


def _read(header: Header, name: str) -> dict[str, Any]:
    """A part of a checkpoint: its tensors and what the JSON holds of it."""
    tensors = safetensors.torch.load((header.folder / f"{name}.safetensors").read_bytes())
    return {**tensors, **header.facts.get(name, {})}


def _read_format_2(header: Header, engine: Engine, rank: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The engine's own part and the random numbers of process `rank`, none if it had none, from a format 2."""
    run, facts, progress = _read(header, "run"), header.facts, header.progress
    number = progress.epoch * engine.schedule.batches_per_epoch + progress.position // engine.schedule.batch
    own = {"number": number, "last_update": facts["progress"]["last_update"], "scaler": facts["scaler"]}
    own |= {name: run[name] for name in ("sums", "good_statistics", "losses_finite")}
    prefix = f"rank-{rank}." if rank else ""
    names = [name for name in run if name.startswith(f"{prefix}random.")]
    numbers = {name.removeprefix(prefix): run[name] for name in names}
    return own, numbers | facts.get(f"{prefix}random", {})
