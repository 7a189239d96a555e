"""TensorBoard: curves and pictures of a run. Only where its package is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from yoloyard.data.index import Index
from yoloyard.evaluation import plots
from yoloyard.evaluation.drawing import draw_boxes
from yoloyard.structures import Batch, Detections

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes `tensorboard/` in the run folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: SummaryWriter = SummaryWriter(str(folder))

    @staticmethod
    def is_installed() -> bool:
        """Is there a TensorBoard to write for?"""
        return importlib.util.find_spec("tensorboard") is not None

    def scalars(self, record: dict[str, float]) -> None:
        """An epoch's figures."""
        for name, value in record.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, int(record["epoch"]))
        self._writer.flush()

    def training_batch(self, batch: Batch, names: Sequence[str], step: int) -> None:
        """Pictures as the network sees them, with the boxes that it is taught."""
        for row in range(min(len(batch.image_ids), 8)):
            real = batch.labels[row] >= 0
            picture = draw_boxes(
                _pixels(batch.images[row]),
                batch.boxes[row][real].cpu().numpy(),
                batch.labels[row][real].cpu().numpy(),
                names,
            )
            self._picture(f"training batch/{row}", picture, step)

    def labels(self, index: Index) -> None:
        """The statistics of the training labels."""
        for title, figure in plots.label_statistics(index).items():
            picture: Any = cv2.imdecode(np.frombuffer(plots.figure_png(figure), np.uint8), cv2.IMREAD_COLOR)
            self._picture(f"labels/{title}", picture[..., ::-1], 0)

    def prediction(self, name: object, image: np.ndarray, found: Detections, names: Sequence[str], epoch: int) -> None:
        """What was found in a validation picture."""
        sure = found.scores >= 0.25
        picture = draw_boxes(
            image, found.boxes[sure].numpy(), found.labels[sure].numpy(), names, found.scores[sure].numpy()
        )
        self._picture(f"prediction/{name}", picture, epoch)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _picture(self, name: str, picture: np.ndarray, step: int) -> None:
        self._writer.add_image(name, picture, step, dataformats="HWC")


def _pixels(image: torch.Tensor) -> np.ndarray:
    pixels: Any = image.permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(pixels)
