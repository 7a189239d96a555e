"""What the files of a run folder say of its run: a live one, one that is over, or one of an older version.

The files are read as they are; nothing is written, and torch is not needed.
"""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from yoloyard.common.files import is_locked

STATUS = "status.json"
STATUS_KEYS = {"state", "reason", "host", "pid", "started", "updated", "seconds", "epoch", "epochs", "step", "steps"}
LAST_VALIDATION = "last_validation.json"
SILENT_SECONDS = 120  # that are worth a note; a run on another host, whose lock can't be seen, then counts as gone

Record = Mapping[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """A run folder at one moment. Parts that are missing or can't be read are empty; `problems` says which."""

    folder: Path
    settings: Record  # of config.yaml
    status: Record  # of status.json
    records: Sequence[Record]  # the epochs of metrics.jsonl
    alerts: Sequence[Record]  # its other lines
    backup: Record  # of backup.json: address, epoch, waiting_since, error ...
    state: str  # running, finished, interrupted, failed or diverged
    reason: str  # what says so
    problems: list[str]

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.folder.name

    @cached_property
    def validation(self) -> Record:
        """What last_validation.json says."""
        return _read_json(self.folder / LAST_VALIDATION, self.problems)

    @property
    def epochs(self) -> int:
        """How many epochs the run has or will have, as far as is known."""
        return int(self.status.get("epochs") or self.settings.get("epochs") or 0)

    @property
    def epochs_done(self) -> float:
        """How many epochs are done, with the part of the current one."""
        done, status = max((record["epoch"] for record in self.records), default=0), self.status
        if self.state == "running" and status.get("steps") and status["epoch"] > done:
            return float(status["epoch"] - 1 + status["step"] / status["steps"])
        return float(done)

    @cached_property
    def best(self) -> dict[str, Any] | None:
        """The best figure (`figure`, `value`, `epoch`), by which the run chooses its weights; None before the first."""
        name = self.settings.get("best_by", "map50_95")
        column = f"val/{name}"
        values = [(each[column], -each["epoch"]) for each in self.records if each.get(column) is not None]
        if not values:
            return None
        value, epoch = max(values)
        return {"figure": name, "value": value, "epoch": -epoch}

    @property
    def seconds(self) -> float:
        """Seconds of training and validation; of training alone where a run of an older version says no more."""
        return float(self.status.get("seconds") or sum(record.get("speed/seconds", 0) for record in self.records))

    @property
    def seconds_left(self) -> float | None:
        """How long the run still takes at most, if it goes on as before; None if it is over or has just begun."""
        done = self.epochs_done
        return self.seconds / done * max(self.epochs - done, 0) if self.state == "running" and done else None

    @property
    def behind_seconds(self) -> float:
        """How long the oldest checkpoint that has not arrived at `--backup` waits, or waited when the run ended."""
        if not (since := self.backup.get("waiting_since")):
            return 0.0
        is_over = self.state != "running" and self.status.get("updated")
        until = datetime.fromisoformat(self.status["updated"]) if is_over else datetime.now(UTC)
        return max(0.0, (until - datetime.fromisoformat(since)).total_seconds())

    @cached_property
    def size(self) -> int:
        """Bytes of all its files; a file that checkpoints share counts once."""
        sizes = {}
        for place, _, names in os.walk(self.folder):
            for name in names:
                try:
                    facts = os.lstat(os.path.join(place, name))
                except FileNotFoundError:  # a live run has replaced it
                    continue
                sizes[facts.st_ino] = facts.st_size
        return sum(sizes.values())

    def as_dict(self) -> dict[str, Any]:
        """What `yoloyard runs --json` says of the run (docs/json.md)."""
        backup = {name: self.backup.get(name) for name in ("address", "epoch", "error")}
        backup["behind_seconds"] = self.behind_seconds
        return {
            "name": self.name,
            "folder": self.folder,
            "state": self.state,
            "reason": self.reason,
            "epoch": int(self.epochs_done),
            "epochs": self.epochs,
            "best": self.best,
            "seconds": self.seconds,
            "bytes": self.size,
            "alerts": len(self.alerts),
            "started": self.status.get("started"),
            "updated": self.status.get("updated"),
            "backup": backup if self.backup else None,
        }

    def texts(self) -> dict[str, str]:
        """The same for a reader, the best figure with its epoch; what there is nothing to say of is empty."""
        best, left, behind = self.best, self.seconds_left, self.behind_seconds
        backup = f"epoch {self.backup.get('epoch')}" if self.backup else ""
        backup += f", {_time_text(behind)} behind" if behind else ""
        return {
            "state": self.state,
            "epoch": f"{int(self.epochs_done)}/{self.epochs}",
            "best": f"{best['value']:.4f} ({best['epoch']})" if best else "",
            "time": _time_text(self.seconds),
            "left": _time_text(left) if left else "",
            "size": f"{self.size / 1e9:.1f} GB" if self.size >= 1e8 else f"{self.size / 1e6:.1f} MB",
            "backup": f"{backup}: {self.backup['error']}" if self.backup.get("error") else backup,
            "alerts": str(len(self.alerts) or ""),
        }


def read_run(folder: Path) -> RunFolder:
    """What the files of `folder` say at this moment."""
    problems: list[str] = []

    status = _read_json(folder / STATUS, problems)
    if status and not status.keys() >= STATUS_KEYS:
        problems.append(f"{STATUS} lacks {', '.join(sorted(STATUS_KEYS - status.keys()))}")
        status = {}
    records, alerts = _read_metrics(folder, problems)
    state, reason = _state_of(folder, status)
    return RunFolder(
        folder=folder,
        settings=_read_settings(folder, problems),
        status=status,
        records=records,
        alerts=alerts,
        backup=_read_json(folder / "backup.json", problems),
        state=state,
        reason=reason,
        problems=problems,
    )


def find_runs(project: Path) -> list[Path]:
    """The folders of `project` that hold runs, the oldest first."""
    configs = [path for path in project.glob("*/config.yaml") if path.is_file()]
    return [path.parent for path in sorted(configs, key=lambda path: path.stat().st_mtime)]


def names_of(runs: Sequence[RunFolder]) -> list[str]:
    """How to call these runs: by their names, by their folders where two have the same name."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def alert_line(alert: Record) -> str:
    """A line of metrics.jsonl that holds an alert, for a reader; `alert` is its kind, or holds all of it."""
    said = alert["alert"] if isinstance(alert["alert"], dict) else alert
    line = str(said.get("message") or said.get("alert") or said.get("kind"))
    line = f"epoch {alert['epoch']}: {line}" if alert.get("epoch") else line
    line += f" ({said['evidence']})" if said.get("evidence") else ""
    return line + (f"; {said['remedy']}" if said.get("remedy") else "")


def _state_of(folder: Path, status: Record) -> tuple[str, str]:
    """The state of a run, and what says so."""
    locked, state, host = is_locked(folder), status.get("state"), status.get("host")
    if not state:  # of an older version, or not begun yet
        if locked:
            return "running", "a process holds the lock of its folder"
        if (folder / "report.html").exists():
            return "finished", "its report is written"
        if any(folder.glob("checkpoints/*/state.json")):
            return "interrupted", "there is a checkpoint and no report"
        return "interrupted", "it ended before its first checkpoint"
    if state != "running":
        return ("running", "it goes on, and has not begun its first step") if locked else (state, status["reason"])
    where = f"process {status['pid']} on {host}"
    silent = (datetime.now(UTC) - datetime.fromisoformat(status["updated"])).total_seconds()
    if locked:
        return "running", where + (f", silent for {_time_text(silent)}" if silent > SILENT_SECONDS else "")
    if locked is None or (host != platform.node() and silent < SILENT_SECONDS):
        return "running", f"{where} wrote {STATUS} {silent:.0f} s ago; its lock can't be seen from here"
    return "interrupted", f"its process is gone ({where}, last seen {status['updated']})"


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:  # not every run has it
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} can't be read ({error})")
        return {}
    if not isinstance(found, dict):
        problems.append(f"{path.name} is no JSON object")
        return {}
    return found


def _read_settings(folder: Path, problems: list[str]) -> dict[str, Any]:
    import yaml  # which a writer of status.json needn't load

    try:
        found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"config.yaml can't be read ({' '.join(str(error).split())})")
        return {}
    return found if isinstance(found, dict) else {}


def _read_metrics(folder: Path, problems: list[str]) -> tuple[list[Record], list[Record]]:
    """The epochs of metrics.jsonl, and its alerts. A number that isn't finite is None."""
    records, alerts = list[Record](), list[Record]()
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} can't be read ({error})")
        lines = []
    for number, line in enumerate(lines, 1):
        try:
            values: dict[str, Any] = {
                name: value if _is_finite(value) else None for name, value in json.loads(line).items()
            }
        except (ValueError, AttributeError):
            values = {}
        if "alert" in values:
            alerts.append(values)
        elif isinstance(values.get("epoch"), int):
            records.append(values)
        else:
            problems.append(f"{path.name}:{number} is no line of figures")
    return records, alerts


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _time_text(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{seconds / 60:.1f} min"
