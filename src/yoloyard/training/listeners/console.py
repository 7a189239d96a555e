"""What a run shows on the terminal or in a notebook: lines, a progress bar, the table at its end."""

import importlib.util
import logging
import time
from collections.abc import Callable

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from yoloyard.evaluation.validate import PATH_NAMES
from yoloyard.training.listeners import events
from yoloyard.training.listeners.events import Event, Record, Result
from yoloyard.training.stopwatch import memory_gigabytes

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5  # what a bar shows of a step must be fetched from the device


class Console:
    """A listener that shows a run. A bar is shown on a terminal, and in a notebook that has ipywidgets."""

    def __init__(self, status: Callable[[], str] = str) -> None:
        """`status` gives what else to show of the run's progress."""
        self._status = status
        self.console = RichConsole(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._looked = 0.0

    def say(self, message: str) -> None:
        """Show a line."""
        self.console.print(message.encode("utf-8", "backslashreplace").decode(), markup=False)

    def __call__(self, event: Event) -> None:
        """Show what has happened."""
        match event:
            case events.RunStarted():
                self._device = event.setup.device
            case events.EpochStarted():
                self._begin(f"epoch {event.epoch}/{event.epochs}", event.batches)
            case events.StepFinished() if self.is_due():
                record = event.figures()
                self._show(event.batch, f"{_losses_of(record)}  {_speed_of(record)}")
            case events.ImagesValidated(images=0):
                self._begin("validation", event.of)
            case events.ImagesValidated() if self.is_due():
                self._show(event.images, "")
            case events.EpochMeasured():
                self._end()
                log.info("  ".join(filter(None, (epoch_line(event.record, event.epochs), self._status()))))
            case events.CheckpointWritten() | events.RunFinished(result=None):
                self._end()
            case events.RunFinished(result=Result() as result):
                self._end()
                self._show_result(result, event.epochs, event.seconds)

    def is_due(self) -> bool:
        """Is anybody looking at the bar, and was the last look long ago?"""
        is_shown = self._bar is not None and not self._bar.disable
        return is_shown and time.perf_counter() - self._looked > SECONDS_BETWEEN_LOOKS

    def _begin(self, title: str, total: int) -> None:
        self._end()
        parts = "{task.description}", BarColumn(bar_width=20), MofNCompleteColumn(), "{task.fields[text]}"
        in_notebook = self.console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        is_shown = self.console.is_terminal or in_notebook
        self._bar = Progress(*parts, TimeRemainingColumn(), console=self.console, transient=True, disable=not is_shown)
        self._bar.start()
        self._bar.add_task(title, total=total, text="")
        self._looked = 0.0

    def _show(self, done: int, text: str) -> None:
        assert self._bar is not None
        self._looked = time.perf_counter()
        text = f"{text}  {memory_gigabytes(self._device):.1f} GB  {self._status()}".rstrip()
        self._bar.update(self._bar.task_ids[0], completed=done, text=text)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show_result(self, result: Result, epochs: int, seconds: float) -> None:
        figures = result.metrics.figures()
        title = f"{result.folder.name}: best epoch {result.best_epoch} of {epochs}"
        table = Table(title=title, show_header=False, title_justify="left")
        table.add_column()
        table.add_column(overflow="fold")  # a path must stay whole
        table.add_row("mAP50-95", f"{figures['map50_95']:.4f}")
        table.add_row("mAP50", f"{figures['map50']:.4f}")
        table.add_row("precision, recall", f"{figures['precision']:.3f}, {figures['recall']:.3f}")
        if result.other is not None:
            for metrics in (result.metrics, result.other):
                parts = f"mAP50-95 {metrics.map50_95:.4f}", f"{metrics.duplicates:.3f} duplicates an image"
                table.add_row(PATH_NAMES[metrics.suppression], ", ".join(parts))
        table.add_row("time", f"{seconds / 60:.1f} minutes")
        table.add_row("weights", str(result.weights))
        table.add_row("report", str(result.report))
        self.console.print(table, soft_wrap=False)


def epoch_line(record: Record, epochs: int) -> str:
    """The figures of an epoch in a line."""
    figures = ""
    if "val/map50" in record:
        figures = f"mAP50 {record['val/map50']:.3f}  mAP50-95 {record['val/map50_95']:.3f}  "
    memory = f"{record['memory/gigabytes']:.1f} GB"
    return f"epoch {record['epoch']:.0f}/{epochs}  {_losses_of(record)}  {figures}{_speed_of(record)}  {memory}"


def _losses_of(record: Record) -> str:
    return "  ".join(f"{name[6:]} {value:.3f}" for name, value in record.items() if name.startswith("train/"))


def _speed_of(record: Record) -> str:
    return f"{record['speed/images_per_second']:.1f} images/s  {record['speed/waiting_fraction']:.0%} waiting for data"
