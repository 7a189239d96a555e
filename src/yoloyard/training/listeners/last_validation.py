"""`last_validation.json` in the run folder: figures of each class, and a few images with what was found in them.

`yoloyard watch` and `yoloyard runs compare` show it.
"""

import base64
import json
import time
from dataclasses import asdict
from typing import Any

from yoloyard.common.files import write_soon
from yoloyard.common.run_folder import LAST_VALIDATION
from yoloyard.data.pixels.decode import encode_jpeg
from yoloyard.data.pixels.view import view_of
from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.evaluation.metrics.showing import shown
from yoloyard.evaluation.report.drawing import draw_boxes, shrunk
from yoloyard.training.listeners import events
from yoloyard.training.listeners.events import Event, Validation

SECONDS_BETWEEN_IMAGES = 20.0
IMAGES_SHOWN = 3  # the first ones of the validation set
IMAGE_SIDE = 480  # pixels of the longer side
JPEG_QUALITY = 82


class LastValidation:
    """A listener that keeps the file."""

    def __init__(self) -> None:
        self._images: dict[str, Any] = {"images_epoch": 0, "images": []}
        self._drawn = -SECONDS_BETWEEN_IMAGES

    def __call__(self, event: Event) -> None:
        """Write what the validation of an epoch found, and at the end the figures of the best weights."""
        match event:
            case events.RunStarted():
                self._setup = event.setup
                if event.epoch == 0:  # of a former run in this folder (--exist-ok)
                    (event.folder / LAST_VALIDATION).unlink(missing_ok=True)
            case events.EpochEnded():
                if validation := event.validation():
                    if time.monotonic() - self._drawn > SECONDS_BETWEEN_IMAGES:
                        self._drawn = time.monotonic()
                        self._images = {"images_epoch": event.epoch, "images": self._draw(validation)}
                    self._write(event.epoch, validation.metrics)
            case events.RunFinished(result=events.Result() as result):
                self._write(result.best_epoch, result.metrics)

    def _write(self, epoch: int, metrics: Metrics) -> None:
        facts = {"epoch": epoch, "classes": [asdict(row) for row in metrics.classes]} | self._images
        write_soon(self._setup.folder / LAST_VALIDATION, json.dumps(facts).encode())

    def _draw(self, validation: Validation) -> list[dict[str, Any]]:
        """Some images with what was found in them, in the form of `page.Image`."""
        images = []
        for number, path in enumerate(self._setup.val_index.paths[:IMAGES_SHOWN]):
            pixels, scale = shrunk(view_of(path, self._setup.val_index.pixels), IMAGE_SIDE)
            found = shown(validation.detections[number], validation.metrics.showing)
            boxes, labels, scores = (part.numpy() for part in (found.boxes, found.labels, found.scores))
            drawn = draw_boxes(pixels, boxes * scale, labels, self._setup.spec.names, scores)
            source = "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(drawn, JPEG_QUALITY)).decode("ascii")
            height, width = drawn.shape[:2]
            images.append({"source": source, "width": width, "height": height, "alt": f"{path.name}: found"})
        return images
