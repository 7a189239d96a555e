"""Objects in pictures, folders, videos and cameras, with the weights of a run."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from yoloyard.config import EvaluationConfig
from yoloyard.data.augment import letterbox, minimal_shape
from yoloyard.data.decode import decode_image
from yoloyard.data.sources import IMAGE_SUFFIXES
from yoloyard.device import choose_device, precision_named
from yoloyard.errors import UsageError, UserError
from yoloyard.evaluation.drawing import draw_boxes
from yoloyard.evaluation.validate import detect
from yoloyard.files import write_whole_text
from yoloyard.models.weights import load_model
from yoloyard.structures import Detections

CONFIDENCE = 0.25
VIDEO_SUFFIXES = frozenset((".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm", ".mpg", ".mpeg", ".wmv"))


@dataclass(frozen=True)
class Picture:
    """A picture to look at: its name for the results and its pixels."""

    name: str
    image: np.ndarray  # uint8 RGB (H, W, 3)
    video: str | None = None  # the video or camera that it is a frame of
    frames_per_second: float = 0.0


class Model:
    """A detector with the settings of its weight file: `model(image)` gives Detections.

    `image` is a path, a uint8 RGB array (H, W, 3), or a list of these, which gives a list.
    """

    def __init__(
        self,
        weights: str | Path,
        device: str = "auto",
        imgsz: int | None = None,
        conf: float = CONFIDENCE,
        iou: float | None = None,
        max_det: int | None = None,
    ) -> None:
        self.detector, self.metadata = load_model(Path(weights))
        self.names: tuple[str, ...] = tuple(self.metadata["names"])
        kept = self.metadata.get("evaluation", {})
        defaults = EvaluationConfig()
        self.settings = replace(
            defaults,
            conf=conf,
            iou=kept.get("iou", defaults.iou) if iou is None else iou,
            max_det=kept.get("max_det", defaults.max_det) if max_det is None else max_det,
        )
        self.stride = max(self.detector.strides)
        wanted = imgsz or self.metadata.get("imgsz", 640)
        self.imgsz = -(-wanted // self.stride) * self.stride
        self.device = choose_device(device)
        self.precision = precision_named(self.device, kept.get("precision", "float32"))
        self.detector.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, images: str | Path | np.ndarray | Sequence[str | Path | np.ndarray]) -> Any:
        """Detections of an image, or a list of them for a list of images; boxes xyxy in pixels of each image.

        Raises UserError if a picture can't be read.
        """
        if isinstance(images, str | Path | np.ndarray):
            return self._detect(_pixels(images))
        return [self._detect(_pixels(image)) for image in images]

    def _detect(self, image: np.ndarray) -> Detections:
        shape = minimal_shape(image.shape[0], image.shape[1], self.imgsz, self.stride)
        boxed, transform = letterbox(image, shape)
        images = torch.from_numpy(np.ascontiguousarray(boxed)).permute(2, 0, 1)[None].to(self.device)
        [found] = detect(self.detector, images, [transform], self.settings, self.precision, multi_label=False)
        return found


def load(weights: str | Path, device: str = "auto", **settings: Any) -> Model:
    """The model of a weight file, ready to look at images. `settings`: imgsz, conf, iou, max_det."""
    return Model(weights, device, **settings)


def pictures(sources: Sequence[str]) -> Iterator[Picture]:
    """The pictures of files, folders, globs, videos, camera numbers and stream addresses, in order.

    Raises UsageError if a source is not there or holds nothing.
    """
    for source in sources:
        if source.isdigit() or "://" in source:
            yield from _frames(source)
        elif Path(source).is_dir():
            files = sorted(path for path in Path(source).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            if not files:
                raise UsageError(f"there are no pictures in the folder {source}")
            yield from (Picture(str(path.relative_to(source)), decode_image(path)) for path in files)
        else:
            files = [Path(source)] if Path(source).exists() else sorted(map(Path, glob.glob(source, recursive=True)))
            if not files:
                raise UsageError(f"there is no picture, video or folder {source}")
            for path in files:
                if path.suffix.lower() in VIDEO_SUFFIXES:
                    yield from _frames(str(path))
                elif path.is_file():
                    yield Picture(path.name, decode_image(path))


def predict(
    model: Model,
    sources: Sequence[str],
    folder: Path,
    save_txt: bool,
    save_json: bool,
    say: Callable[[str], None],
) -> int:
    """Look at all `sources` and write pictures with boxes, and on demand YOLO txt and JSON, into `folder`.

    Returns the number of pictures looked at. A camera goes on until Ctrl-C. What was found until then is written.
    """
    results: list[dict[str, Any]] = []
    videos: dict[str, cv2.VideoWriter] = {}
    count = 0
    try:
        for picture in pictures(sources):
            found = model(picture.image)
            count += 1
            say(f"{picture.name}: {_summary(found, model.names)}")
            drawn = draw_boxes(
                picture.image, found.boxes.numpy(), found.labels.numpy(), model.names, found.scores.numpy()
            )
            _write_picture(folder, picture, drawn, videos)
            if save_txt:
                write_whole_text(folder / "labels" / Path(picture.name).with_suffix(".txt"), _yolo_rows(picture, found))
            if save_json:
                results += [{"image": picture.name, **row} for row in _json_rows(found, model.names)]
    finally:
        for writer in videos.values():
            writer.release()
        if save_json:
            write_whole_text(folder / "predictions.json", json.dumps(results, indent=1))
    return count


def _pixels(image: str | Path | np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return decode_image(Path(image))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"an image must be uint8 RGB (height, width, 3), not {image.dtype} {image.shape}")
    return image


def _frames(source: str) -> Iterator[Picture]:
    capture = cv2.VideoCapture(int(source)) if source.isdigit() else cv2.VideoCapture(source)
    try:
        if not capture.isOpened():
            raise UserError(f"can't open the video or camera {source}")
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        stem = f"camera{source}" if source.isdigit() else Path(source.rstrip("/")).stem or "stream"
        number = 0
        while True:
            there, frame = capture.read()
            if not there:
                break
            yield Picture(f"{stem}/{number:06d}.jpg", cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), stem, rate)
            number += 1
        if number == 0:
            raise UserError(f"the video or camera {source} gives no picture")
    finally:
        capture.release()


def _write_picture(folder: Path, picture: Picture, drawn: np.ndarray, videos: dict[str, cv2.VideoWriter]) -> None:
    pixels = cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)
    if picture.video is None:
        path = folder / picture.name
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png", ".bmp", ".webp"):
            path = path.with_suffix(".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(os.fspath(path), pixels):
            raise UserError(f"cannot write {path}: is the disk full or the folder read-only?")
        return
    if picture.video not in videos:
        path = folder / f"{picture.video}.mp4"
        size = (pixels.shape[1], pixels.shape[0])
        videos[picture.video] = cv2.VideoWriter(
            os.fspath(path), cv2.VideoWriter.fourcc(*"mp4v"), picture.frames_per_second, size
        )
        if not videos[picture.video].isOpened():
            raise UserError(f"cannot write the video {path}")
    videos[picture.video].write(pixels)


def _summary(found: Detections, names: Sequence[str]) -> str:
    if not len(found):
        return "nothing found"
    labels, counts = found.labels.unique(return_counts=True)
    return ", ".join(f"{count} {names[label]}" for label, count in zip(labels.tolist(), counts.tolist(), strict=True))


def _yolo_rows(picture: Picture, found: Detections) -> str:
    """Rows `class cx cy w h score`, normalised."""
    height, width = picture.image.shape[:2]
    rows = []
    for (x1, y1, x2, y2), score, label in zip(
        found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
    ):
        numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height, score)
        rows.append(" ".join([str(label), *(f"{number:.6f}" for number in numbers)]))
    return "".join(f"{row}\n" for row in rows)


def _json_rows(found: Detections, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"box_xyxy": [round(value, 2) for value in box], "score": round(score, 5), "label": label, "name": names[label]}
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    ]
