"""What the files of a run folder say of its run: a live one, one that is over, or one of an older version.

The files are read as they are; nothing is written, and torch is not needed.
"""

import contextlib
import functools
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from yoloyard.common.errors import alert_line
from yoloyard.common.files import is_locked
from yoloyard.common.log import bytes_text, time_text

STATUS, LAST_VALIDATION = "status.json", "last_validation.json"
STATUS_KEYS = {"state", "reason", "host", "pid", "started", "updated", "seconds", "epoch", "epochs", "step", "steps"}
SILENT_SECONDS = 120.0  # that are worth a note; a run whose lock can't be seen counts as gone then
COPY_SILENT_SECONDS = 3600.0  # the same for a copy of a run elsewhere, which is renewed with each checkpoint

Record = Mapping[str, Any]
read_json = functools.partial(json.loads, parse_constant=lambda name: None)  # NaN and Infinity are no JSON
read_yaml = functools.partial(yaml.load, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # five times as fast


@dataclass(frozen=True)
class RunFolder:
    """A run folder at one moment: the document of `yoloyard runs show --json` (docs/json.md), and more.

    Parts that are missing or can't be read are empty; `problems` says which.
    """

    name: str
    folder: Path
    state: str  # running, finished, interrupted, failed or diverged
    reason: str  # what says so
    epoch: float  # how many are done, with the part of the current one
    epochs: int  # how many it has or will have, as far as is known
    best: Record | None  # by which the run chooses its weights: `figure`, `value`, `epoch`; None before the first
    seconds: float  # of training and validation; of training alone where an older version says no more
    seconds_left: float | None  # at most, if it goes on as before; None if it is over or has just begun
    bytes: int  # of all files
    host: str | None
    pid: int | None
    started: str | None
    updated: str | None
    backup: Record  # of backup.json: address, epoch, behind_seconds, error ...
    alerts: Sequence[str]  # a line each
    problems: list[str]
    settings: Record  # of config.yaml
    records: Sequence[Record]  # the epochs of metrics.jsonl

    @functools.cached_property
    def validation(self) -> Record:
        """What last_validation.json says: `epoch`, `classes`, `images_epoch`, `images`."""
        return _read(self.folder / LAST_VALIDATION, read_json, self.problems)

    def texts(self) -> dict[str, str]:
        """What a table of runs says of it; what there is nothing to say of is empty."""
        best, backup, behind = self.best, self.backup, self.backup.get("behind_seconds") or 0
        late = f"{time_text(behind)} behind" if behind > SILENT_SECONDS else ""
        newest = f"epoch {epoch}" if (epoch := backup.get("epoch")) is not None else "none yet"
        return {
            "state": self.state,
            "epoch": f"{self.epoch:.{1 if self.state == 'running' else 0}f}/{self.epochs}",
            "best (epoch)": f"{best['value']:.4f} ({best['epoch']})" if best else "",
            "time": time_text(self.seconds),
            "left at most": time_text(self.seconds_left) if self.seconds_left else "",
            "size": bytes_text(self.bytes),
            "backup": ", ".join(filter(None, (newest, late, backup.get("error")))) if backup else "",
            "alerts": str(len(self.alerts) or ""),
        }


def read_run(folder: Path, is_copy: bool = False) -> RunFolder:
    """What the files of `folder` say at this moment; `is_copy`: they were fetched from where the run is copied to."""
    problems: list[str] = []
    status = _read(folder / STATUS, read_json, problems)
    if status and (lacking := STATUS_KEYS - status.keys()):
        problems.append(f"{STATUS} lacks {', '.join(sorted(lacking))}")
        status = {}
    lines = _read(folder / "metrics.jsonl", lambda text: enumerate(text.splitlines(), 1), problems)
    records, alerts = list[Record](), list[str]()
    for number, line in lines.items():
        values = {}
        with contextlib.suppress(ValueError, TypeError):
            values = dict(read_json(line))
        if "alert" in values:
            message = values.get("message") or values["alert"]
            said = alert_line(message, values.get("evidence"), values.get("remedy"))
            alerts.append(f"epoch {values.get('epoch')}: {said}")
        elif isinstance(values.get("epoch"), int):
            records.append(values)
        else:
            problems.append(f"metrics.jsonl:{number} is no line of figures")
    settings = _read(folder / "config.yaml", read_yaml, problems)
    # heights and widths as flags say them
    settings |= {name: "x".join(map(str, value)) for name, value in settings.items() if isinstance(value, list)}
    state, reason = _state_of(folder, status, is_copy)

    epochs = status.get("epochs") or settings.get("epochs")
    done = max((record["epoch"] for record in records), default=0)
    if state == "running" and status.get("steps") and status["epoch"] > done:
        done = status["epoch"] - 1 + status["step"] / status["steps"]
    figure = str(settings.get("best_by", "map50_95"))
    figures = [(each[f"val/{figure}"], -each["epoch"]) for each in records if each.get(f"val/{figure}") is not None]
    value, epoch = max(figures, default=(0, 0))
    seconds = status.get("seconds") or sum(record.get("speed/seconds") or 0 for record in records)
    whole = epochs if isinstance(epochs, int) else 0  # the file may be another program's
    backup = _read(folder / "backup.json", read_json, problems)
    if backup:
        now = datetime.now(UTC).isoformat() if state == "running" else status.get("updated")
        backup["behind_seconds"] = _seconds_between(backup.pop("waiting_since", None), now)
    return RunFolder(
        name=folder.name,
        folder=folder,
        state=state,
        reason=reason,
        epoch=done,
        epochs=whole,
        best={"figure": figure, "value": value, "epoch": -epoch} if figures else None,
        seconds=seconds,
        seconds_left=seconds / done * max(whole - done, 0) if state == "running" and done else None,
        bytes=_size(folder),
        **{name: status.get(name) for name in ("host", "pid", "started", "updated")},
        backup=backup,
        alerts=alerts,
        problems=problems,
        settings=settings,
        records=records,
    )


def find_runs(project: Path) -> list[Path]:
    """The folders of `project` that hold runs, the oldest first."""
    ages = {}
    for config in project.glob("*/config.yaml"):
        with contextlib.suppress(OSError):  # it is being removed
            ages[config.parent] = config.stat().st_mtime
    return sorted(ages, key=lambda folder: ages[folder])


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file, or a damaged one."""
    return _read(path, read_json, [])


def names_of(runs: Sequence[RunFolder]) -> list[str]:
    """How to call these runs: by their names, by their folders where two have the same name."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _state_of(folder: Path, status: Record, is_copy: bool) -> tuple[str, str]:
    """The state of a run, and what says so."""
    locked = None if is_copy else is_locked(folder)
    if not folder.exists():
        return "interrupted", "its folder is gone"
    if not status:  # of an older version, or not begun yet
        if locked:
            return "running", "a process holds the lock of its folder"
        if (folder / "report.html").exists():
            return "finished", "its report is written"
        found = any(folder.glob("checkpoints/*/state.json"))
        return "interrupted", "there is a checkpoint and no report" if found else "it ended before its first checkpoint"
    if status["state"] != "running":
        begins = "running", "a process holds the lock of its folder: it begins, or is about to end"
        return begins if locked else (status["state"], status["reason"])
    where = f"process {status['pid']} on {status['host']}"
    silent = _seconds_between(status["updated"], datetime.now(UTC).isoformat())
    if locked:
        return "running", where + (f", silent for {time_text(silent)}" if silent > SILENT_SECONDS else "")
    if locked is False and status["host"] == platform.node():
        return "interrupted", f"its process is gone ({where}, last seen {status['updated']})"
    state = "running" if silent < (COPY_SILENT_SECONDS if is_copy else SILENT_SECONDS) else "interrupted"
    return state, f"{where} said so {time_text(silent)} ago; whether it is there can't be seen from here"


def _seconds_between(start: str | None, end: str | None) -> float:
    """From one time to a later one, 0 where one is not known; both as they stand in files."""
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (datetime.fromisoformat(end or "") - datetime.fromisoformat(start or "")).total_seconds())
    return 0.0


def _size(folder: Path) -> int:
    """Bytes of all its files; a file that checkpoints share counts once."""
    sizes = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # a live run has replaced it
                facts = os.lstat(os.path.join(place, name))
                sizes[facts.st_ino] = facts.st_size
    return sum(sizes.values())


def _read(path: Path, parse: Callable[[str], Any], problems: list[str]) -> dict[Any, Any]:
    """What `parse` makes of a file; nothing where there is none, or it is damaged, which `problems` then says."""
    try:
        return dict(parse(path.read_text(encoding="utf-8")))
    except FileNotFoundError:  # not every run has it
        return {}
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        problems.append(f"{path.name} can't be read ({' '.join(str(error).split())})")
        return {}
