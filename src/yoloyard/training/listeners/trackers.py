"""Where else a run is shown: TensorBoard's files, where its package is installed, and Weights & Biases (`--wandb`)."""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.files import plain_path, write_whole_text
from yoloyard.common.structures import Detections
from yoloyard.config.settings import TrainConfig, flat_settings
from yoloyard.data.index.index import Index
from yoloyard.data.pixels.decode import encode_jpeg
from yoloyard.data.pixels.view import view_of, viewed
from yoloyard.evaluation.metrics.showing import shown
from yoloyard.evaluation.report.drawing import draw_boxes, shrunk
from yoloyard.training.listeners import events
from yoloyard.training.listeners.events import Event

WANDB_ID = "wandb-id.txt"  # in the run folder: under which name Weights & Biases knows the run
JPEG_QUALITY = 90  # of TensorBoard's images
BATCHES_SHOWN = 3  # the first ones
IMAGES_SHOWN = 8  # of a batch
PREDICTIONS_SHOWN = 3  # images of each validation
PREDICTION_SIDE = 640  # pixels of the longer side, so that large images don't fill the disk


class TensorBoard:
    """A sink that writes `tensorboard/` in the run folder."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter

        place = folder / "tensorboard"
        place.mkdir(exist_ok=True)
        self._names = contextlib.ExitStack()
        self._writer = SummaryWriter(self._names.enter_context(_utf8_path(place)))
        self._summary = Summary

    def scalars(self, record: dict[str, float]) -> None:
        """An epoch's figures."""
        for name, value in record.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, int(record["epoch"]))
        self._writer.flush()

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """An image, uint8 RGB (H, W, 3)."""
        # As a JPEG: the writer takes checksums byte by byte in Python, beside the training step, and PNGs are large.
        (height, width), jpeg = image.shape[:2], encode_jpeg(image, JPEG_QUALITY)
        image = self._summary.Image(height=height, width=width, colorspace=3, encoded_image_string=jpeg)
        file = self._writer.file_writer
        assert file is not None  # until it is closed
        file.add_summary(self._summary(value=[self._summary.Value(tag=name, image=image)]), step)

    def alert(self, alert: events.AlertRaised, epoch: int) -> None:
        """An alert, as text."""
        self._writer.add_text("alerts", alert.line, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
        self._names.close()


class WeightsAndBiases:
    """A sink: a run of the same name in the project `yoloyard`, or in that of WANDB_PROJECT, also where a run goes on.

    WANDB_MODE=offline: in the run folder alone. Raises UserError if it can't begin, without an account or a server.
    """

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        import wandb

        self._names = contextlib.ExitStack()
        kept = folder / WANDB_ID
        known = kept.read_text(encoding="utf-8").strip() if kept.exists() else None
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "yoloyard"),
                name=_utf8(folder.name),
                dir=self._names.enter_context(_utf8_path(folder)),
                config={name: _utf8(value) for name, value in flat_settings(config).items()},
                id=known,
                resume="allow",
            )
        except wandb.errors.Error as error:
            advice = "say `wandb login`, set WANDB_MODE=offline, or leave --wandb out"
            raise UserError(f"Weights & Biases: {str(error).rstrip('.')}; {advice}") from error
        write_whole_text(kept, self._run.id)
        self._run.define_metric("*", step_metric="epoch")  # the axis of every curve
        self._wandb_image = wandb.Image

    def scalars(self, record: dict[str, float]) -> None:
        """An epoch's figures."""
        self._run.log(record)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """An image, uint8 RGB (H, W, 3)."""
        self._run.log({name: self._wandb_image(image)})

    def alert(self, alert: events.AlertRaised, epoch: int) -> None:
        """An alert, which its server sends on as its user has chosen there."""
        self._run.alert(_utf8(alert.kind or "alert"), _utf8(alert.line), level="WARN")

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()
        self._names.close()


Sink = TensorBoard | WeightsAndBiases


class Tracker:
    """A listener that shows a run by the `Sink` that `open_sink(folder, config)` gives, if it gives one."""

    def __init__(self, open_sink: Callable[[Path, TrainConfig], Sink | None]) -> None:
        self._open = open_sink
        self._sink: Sink | None = None
        self._epoch = 0

    @property
    def __name__(self) -> str:
        """How a failure is named."""
        return type(self._sink).__name__ if self._sink else self._open.__name__

    def __call__(self, event: Event) -> None:
        """Show the first batches, the labels, and of each epoch its figures and what was found in some images."""
        if isinstance(event, events.RunStarted):
            self._setup, self._sink = event.setup, self._open(event.folder, event.setup.config)
        if isinstance(event, events.EpochStarted):
            self._epoch = event.epoch
        if self._sink is None:
            return
        names = self._setup.spec.names
        if isinstance(event, events.StepFinished) and event.number < BATCHES_SHOWN:
            batch = event.images()
            assert batch is not None  # as long as this call lasts
            for row, real in enumerate(batch.labels[:IMAGES_SHOWN] >= 0):
                pixels: Any = batch.images[row].permute(1, 2, 0).cpu().numpy()
                boxes, labels = (values[row][real].cpu().numpy() for values in (batch.boxes, batch.labels))
                image = draw_boxes(viewed(pixels), boxes, labels, names)
                self._sink.image(f"training batch/{row}", image, event.number)
        elif isinstance(event, events.EpochEnded):
            if event.epoch == 1:  # not before the first step, which needn't wait for it
                show_labels(self._sink, self._setup.train_index)
            self._sink.scalars(event.record)
            if validation := event.validation():
                for number in range(min(PREDICTIONS_SHOWN, len(validation.detections))):
                    found = shown(validation.detections[number], validation.metrics.showing)
                    pixels = view_of(self._setup.val_index.paths[number], self._setup.val_index.pixels)
                    show_prediction(self._sink, number, pixels, found, names, event.epoch)
        elif isinstance(event, events.AlertRaised):
            self._sink.alert(event, self._epoch)
        elif isinstance(event, events.RunFinished):
            self._sink.close()


def show_labels(sink: Sink, index: Index) -> None:
    """Show the statistics of the training labels."""
    from yoloyard.evaluation.report import plots

    for title, figure in plots.label_statistics(index).items():
        image: Any = cv2.imdecode(np.frombuffer(plots.figure_png(figure), np.uint8), cv2.IMREAD_COLOR)
        sink.image(f"labels/{title}", image[..., ::-1], 0)


def show_prediction(
    sink: Sink, name: object, image: np.ndarray, found: Detections, names: Sequence[str], epoch: int
) -> None:
    """Show what was found in a validation image, uint8 RGB (H, W, 3), of which a large one is made smaller."""
    small, scale = shrunk(image, PREDICTION_SIDE)
    boxes, labels, scores = (values.numpy() for values in (found.boxes, found.labels, found.scores))
    sink.image(f"prediction/{name}", draw_boxes(small, boxes * scale, labels, names, scores), epoch)


def check_trackers(config: TrainConfig) -> None:
    """Raises UsageError if a tracker is asked for that isn't installed."""
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise UsageError("--wandb needs Weights & Biases' package: pip install wandb")


def open_tensorboard(folder: Path, config: TrainConfig) -> TensorBoard | None:
    """TensorBoard's files of the run in `folder`, if they are wanted and its package is installed."""
    return TensorBoard(folder) if config.tensorboard and importlib.util.find_spec("tensorboard") else None


def open_wandb(folder: Path, config: TrainConfig) -> WeightsAndBiases | None:
    """The run in `folder` at Weights & Biases, if that is wanted. Raises UserError if it can't begin."""
    return WeightsAndBiases(folder, config) if config.wandb else None


TRACKERS = (open_tensorboard, open_wandb)


def _utf8(value: Any) -> Any:
    """A text without what only names of files can hold; anything else as it is."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _utf8_path(folder: Path) -> contextlib.AbstractContextManager[str]:
    """While it lasts, a path of `folder` in UTF-8, which is all that these packages can take."""
    return contextlib.nullcontext(str(folder)) if _utf8(str(folder)) == str(folder) else plain_path(folder)
