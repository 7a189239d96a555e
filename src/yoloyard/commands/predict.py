"""Predictions for images, videos and cameras: images with boxes, labels and JSON in a run folder."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from yoloyard.commands.model import Model
from yoloyard.commands.sources import Source, SourceImage, images_of
from yoloyard.common.boxes import xyxy_to_cxcywh
from yoloyard.common.cores import Threads
from yoloyard.common.errors import UserError
from yoloyard.common.files import is_full, write_whole, write_whole_text
from yoloyard.common.structures import Detections
from yoloyard.common.video import UnreadableError, VideoFile
from yoloyard.cpu.memory import reuse_memory
from yoloyard.data.pixels.view import viewed
from yoloyard.evaluation.report.drawing import draw_boxes

log = logging.getLogger(__name__)

SECONDS_BETWEEN_CHOICES = 5.0  # of the number of threads


@dataclass
class Done:
    """How many images were looked at, how many sources could not be read in full, how many results not written."""

    images: int = 0
    unreadable: int = 0
    unwritten: int = 0


def predict(model: Model, sources: Sequence[Source], folder: Path, save_txt: bool, save_json: bool) -> Done:
    """Look at all `sources` and write images with boxes, and on demand YOLO txt and JSON, into `folder`.

    A camera goes on until Ctrl-C. Results so far are written whatever ends the prediction. What can't be read, or not
    in full, and results that can't be written are named and counted. Raises UserError if the only source can't be
    read at all, and if the disk is full.
    """
    reuse_memory(model.network.precision)
    threads = Threads(model.network.device.type)
    results: list[dict[str, Any]] = []
    done = Done()

    def attempt(write: Callable[[], None]) -> None:
        try:
            write()
        except UserError as error:
            if is_full(error):
                raise
            log.info(f"not written: {error}")
            done.unwritten += 1

    try:
        for source in sources:
            video: VideoFile | None = None
            before = done.images
            try:
                for image in images_of(source, model.pixels):
                    threads.choose(every=SECONDS_BETWEEN_CHOICES)
                    found = model.find(image.image)
                    done.images += 1
                    log.info(f"{image.name}: {_summary(found, model.names)}")
                    if save_json:
                        rows = json_rows(found, model.names)
                        results += [{"image": image.source, **_rounded(row)} for row in rows]
                    if save_txt:
                        path = folder / "labels" / Path(image.name).with_suffix(".txt")
                        attempt(partial(write_whole_text, path, _yolo_rows(image, found)))
                    boxes, labels, scores = (part.numpy() for part in (found.boxes, found.labels, found.scores))
                    drawn = draw_boxes(viewed(image.image), boxes, labels, model.names, scores)
                    if not source.is_video:
                        attempt(partial(_write_image, folder / image.name, drawn))
                    else:
                        video = video or VideoFile(folder / source.name, image.frames_per_second)
                        attempt(partial(video.write, drawn))
                if video is not None:
                    video.close()
                    attempt(video.check)
            except UnreadableError as error:
                if not source.is_optional and done.images == before:
                    raise
                log.info(f"left out: {error}")
                done.unreadable += 1
            finally:
                if video is not None:
                    video.close()
    finally:
        threads.restore()
        if save_json:
            write_whole_text(folder / "predictions.json", json.dumps(results, indent=1))
    return done


def _write_image(path: Path, drawn: np.ndarray) -> None:
    pixels = cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)
    for suffix in (path.suffix, ".png"):  # a JPEG ends at 65,500 pixels a side, a WebP at 16,383
        encoded_well, encoded = cv2.imencode(suffix, pixels)
        if encoded_well:
            content = encoded.tobytes()
            write_whole(path.with_suffix(suffix), partial(Path.write_bytes, data=content))
            return
    raise UserError(f"{path} is too large to be written as {path.suffix} or .png")


def _summary(found: Detections, names: Sequence[str]) -> str:
    counts = sorted(Counter(found.labels.tolist()).items())
    return ", ".join(f"{count} {names[label]}" for label, count in counts) or "nothing found"


def _yolo_rows(image: SourceImage, found: Detections) -> str:
    """Rows `class cx cy w h score`, normalised."""
    height, width = image.image.shape[:2]
    boxes = xyxy_to_cxcywh(found.boxes.double()) / torch.tensor([width, height] * 2)
    rows = zip(found.labels.tolist(), boxes.tolist(), found.scores.tolist(), strict=True)
    return "".join(f"{label} {' '.join(f'{number:.6f}' for number in (*box, score))}\n" for label, box, score in rows)


def json_rows(found: Detections, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each box: its corners in pixels of the image, its score and its class."""
    columns = (found.boxes.tolist(), found.scores.tolist(), found.labels.tolist())
    return [
        {"box_xyxy": box, "score": score, "label": label, "name": names[label]}
        for box, score, label in zip(*columns, strict=True)
    ]


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "box_xyxy": [round(value, 2) for value in row["box_xyxy"]], "score": round(row["score"], 5)}
