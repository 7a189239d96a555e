"""What a run says: events, the progress bar, metrics.jsonl and results.csv."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from yoloyard.common.files import write_whole_text

if TYPE_CHECKING:
    from yoloyard.training.setup.setup import Setup

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class RunStarted:
    """Training is about to begin, or to go on."""

    setup: Setup


@dataclass(frozen=True)
class EpochEnded:
    """An epoch was trained and validated; `record` is its line of metrics.jsonl."""

    epoch: int
    record: dict[str, float]


@dataclass(frozen=True)
class AlertRaised:
    """Something the user should know."""

    message: str


@dataclass(frozen=True)
class CheckpointWritten:
    """A checkpoint is whole on disk."""

    folder: Path


Event = RunStarted | EpochEnded | AlertRaised | CheckpointWritten


class Bar:
    """A progress bar that is moved at most twice a second, since what it shows must be fetched from the device."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self._shown = 0.0

    def is_due(self) -> bool:
        """Is anybody looking, and was the last look long ago?"""
        return not self._progress.disable and time.perf_counter() - self._shown > SECONDS_BETWEEN_LOOKS

    def show(self, done: int, text: str, gigabytes: float) -> None:
        """Move the bar to `done`."""
        self._shown = time.perf_counter()
        self._progress.update(self._task, completed=done, text=f"{text}  {gigabytes:.1f} GB")


class Monitor:
    """Talks on the console, keeps the records of the run folder, passes events on."""

    def __init__(self, listeners: Sequence[Callable[[Event], object]] = (), silent: bool = False) -> None:
        self.folder = Path()  # the run folder, once there is one
        self.console = Console(stderr=False, highlight=False, soft_wrap=True, quiet=silent)
        self.records: list[dict[str, float]] = []
        self._listeners = listeners

    def say(self, message: str) -> None:
        """A line for the user."""
        self.console.print(message.encode("utf-8", "backslashreplace").decode(), markup=False)

    def tell(self, event: Event) -> None:
        """Pass an event on; alerts are printed as well."""
        if isinstance(event, AlertRaised):
            log.warning(event.message)
        for listen in self._listeners:
            listen(event)

    def read_records(self, epochs: int) -> None:
        """Take up the records of an earlier part of the run: those of its first `epochs` epochs."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            self.records = [record for record in lines if record["epoch"] <= epochs]

    def record(self, record: dict[str, float]) -> None:
        """Keep an epoch's figures in metrics.jsonl and results.csv, and say them in a line."""
        self.records.append(record)
        write_whole_text(self.folder / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in self.records))
        columns = list(dict.fromkeys(name for r in self.records for name in r))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns)
        writer.writeheader()
        writer.writerows(self.records)
        write_whole_text(self.folder / "results.csv", table.getvalue())

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        """A progress bar that vanishes at its end; shown on a terminal, and in a notebook that has ipywidgets."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        in_notebook = self.console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        shown = self.console.is_terminal or in_notebook
        with Progress(*columns, console=self.console, transient=True, disable=not shown) as progress:
            yield Bar(progress, progress.add_task(title, total=total, text=""))

    def epoch_line(self, record: dict[str, float], epochs: int) -> None:
        """One line of an epoch's figures."""
        losses = "  ".join(f"{name[6:]} {value:.3f}" for name, value in record.items() if name.startswith("train/"))
        figures = ""
        if "val/map50" in record:
            figures = f"mAP50 {record['val/map50']:.3f}  mAP50-95 {record['val/map50_95']:.3f}  "
        log.info(
            f"epoch {record['epoch']:.0f}/{epochs}  {losses}  {figures}"
            f"{record['speed/images_per_second']:.1f} images/s  "
            f"{record['speed/waiting_fraction']:.0%} waiting for data  {record['memory/gigabytes']:.1f} GB"
        )

    def table(self, title: str, rows: list[tuple[str, str]]) -> None:
        """A small table of two columns."""
        table = Table(title=title, show_header=False, title_justify="left")
        table.add_column()
        table.add_column(overflow="fold")  # a path must stay whole
        for name, value in rows:
            table.add_row(name, value)
        self.console.print(table, soft_wrap=False)


def memory_gigabytes(device: torch.device) -> float:
    """Most memory used up to now: the accelerator's, or this process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def as_record(epoch: int, groups: dict[str, dict[str, Any]]) -> dict[str, float]:
    """`{"train": {"box": 1.0}}` as `{"epoch": 1, "train/box": 1.0}`."""
    return {"epoch": epoch} | {
        f"{group}/{name}": float(value) for group, values in groups.items() for name, value in values.items()
    }
