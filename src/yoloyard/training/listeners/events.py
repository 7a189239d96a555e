"""What happens in a run, and who hears of it. All of it is told on rank 0 alone."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from yoloyard.common.errors import UserError, alert_line
from yoloyard.common.structures import Batch, Detections
from yoloyard.evaluation.metrics.coco import Metrics

if TYPE_CHECKING:
    from yoloyard.training.setup.setup import Setup

log = logging.getLogger(__name__)

Record = dict[str, float]  # figures by names such as `train/box`; a line of metrics.jsonl is one


@dataclass(frozen=True)
class Validation:
    """What a validation found."""

    metrics: Metrics
    detections: Mapping[int, Detections] = field(repr=False)  # by image; on rank 0 alone


class Event:
    """Something that has happened in a run. What is large in it can be asked for only until all have been told."""


@dataclass(frozen=True)
class RunStarted(Event):
    """All parts of a run are ready, after `epoch` epochs that it has had before."""

    folder: Path
    epoch: int
    setup: "Setup" = field(repr=False)
    seconds: float = 0.0  # of training and validation that it has had before


@dataclass(frozen=True)
class EpochStarted(Event):
    """The batches of an epoch (from 1) begin; `batches` is how many a whole one has."""

    epoch: int
    epochs: int  # that the run will have, as far as is known
    batches: int


@dataclass(frozen=True)
class StepFinished(Event):
    """A batch was trained on, or the device still works on it: the host does not wait for that."""

    epoch: int
    batch: int  # of the epoch, from 1
    number: int  # of the batch in the run, from 0
    losses: Tensor  # (parts,) on the device
    images: Callable[[], Batch | None] = field(repr=False)  # as loaded; None once all listeners have been told
    figures: Callable[[], Record] = field(repr=False)  # of the epoch up to now; a call waits for the device


@dataclass(frozen=True)
class ImagesValidated(Event):
    """The validation has come so far; 0 images when it begins."""

    images: int
    of: int


@dataclass(frozen=True)
class EpochMeasured(Event):
    """The figures of an epoch are known; nothing is saved yet."""

    epochs: int
    record: Record


@dataclass(frozen=True)
class CheckpointWritten(Event):
    """A checkpoint is whole on disk."""

    folder: Path


@dataclass(frozen=True)
class EpochEnded(Event):
    """An epoch was trained, validated and saved; `record` is its line of metrics.jsonl."""

    epoch: int
    record: Record
    validation: Callable[[], Validation | None] = field(default=lambda: None, repr=False)  # None where there was none


@dataclass(frozen=True)
class AlertRaised(Event):
    """Something that the user should know."""

    message: str  # what is wrong
    kind: str = ""  # a stable name of what is wrong, where it is one of a list
    evidence: str = ""  # what shows it
    remedy: str = ""  # what to do

    @property
    def line(self) -> str:
        """All of it in a line."""
        return alert_line(self.message, self.evidence, self.remedy)


@dataclass(frozen=True)
class HostEnding(Event):
    """A signal that is sent before a job or a host ends has come; the run saves, and goes on for now or ends."""

    signal: str  # its name
    goes_on: bool


@dataclass(frozen=True)
class Result:
    """What a finished run leaves."""

    folder: Path
    weights: Path  # the best ones
    report: Path
    metrics: Metrics  # of the best weights
    best_epoch: int  # from 1
    other: Metrics | None = None  # of the network's other path, with or without suppression


@dataclass(frozen=True)
class RunFinished(Event):
    """The run is over; without a result it was stopped or has failed."""

    result: Result | None
    epochs: int  # that it has had
    seconds: float  # of training and validation
    error: BaseException | None = None  # that ended it, `Interrupted` where it was asked to stop


Listener = Callable[[Event], object]


class Listeners:
    """Those who hear of a run. One that raises is left out from then on, since training does not depend on it."""

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self._listeners = list(listeners)

    def tell(self, event: Event) -> None:
        """Pass an event on, in order. Raises UserError where a listener can't begin: then nothing is lost yet."""
        if isinstance(event, AlertRaised):
            log.warning(event.line)
        for listener in tuple(self._listeners):
            if listener not in self._listeners:  # it has failed at the alert of another one's failure
                continue
            try:
                listener(event)
            except Exception as error:
                if isinstance(event, RunStarted) and isinstance(error, UserError):
                    raise
                self._listeners.remove(listener)
                name = getattr(listener, "__name__", type(listener).__name__)
                self.tell(AlertRaised(f"{name} has failed and is left out from here on: {error}"))
