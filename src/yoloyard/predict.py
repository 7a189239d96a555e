"""Objects in pictures, folders, videos and cameras, with the weights of a run."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from yoloyard.config import EvaluationConfig, with_words
from yoloyard.cores import Threads
from yoloyard.data.augment import letterbox, minimal_shape
from yoloyard.data.decode import decode_image
from yoloyard.data.sources import IMAGE_SUFFIXES
from yoloyard.device import choose_device, precision_named, reuse_memory
from yoloyard.errors import UsageError, UserError
from yoloyard.evaluation.drawing import draw_boxes
from yoloyard.evaluation.validate import detect
from yoloyard.files import write_whole, write_whole_text
from yoloyard.models.weights import load_picture_model
from yoloyard.structures import Detections

CONFIDENCE = 0.25
SECONDS_BETWEEN_CHOICES = 5.0  # of the number of threads
VIDEO_SUFFIXES = frozenset((".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm", ".mpg", ".mpeg", ".wmv"))


WRITTEN_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp"))


class UnreadableError(UserError):
    """A picture or video can't be read."""


@dataclass(frozen=True)
class Source:
    """Where pictures come from: a file, a video, or a camera."""

    address: str  # path, camera number, or stream address
    name: str  # of the results, relative to their folder and unlike that of any other source
    is_video: bool
    is_optional: bool = False  # one of many, found in a folder or by a glob: the others are looked at without it


@dataclass(frozen=True)
class Picture:
    """A picture to look at: its name for the results and its pixels."""

    name: str
    source: str
    image: np.ndarray  # uint8 RGB (H, W, 3)
    video: str | None = None  # the video or camera that it is a frame of
    frames_per_second: float = 0.0


@dataclass
class Done:
    """How many pictures were looked at, and how many could not be read."""

    pictures: int = 0
    unreadable: int = 0


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
        self.detector, self.metadata = load_picture_model(Path(weights))
        numbers = map(str, range(self.detector.num_classes))
        self.names: tuple[str, ...] = tuple(self.metadata.get("names") or numbers)
        kept = self.metadata.get("evaluation", {})
        defaults = EvaluationConfig()
        self.settings = with_words(
            defaults,
            {
                "conf": conf,
                "iou": kept.get("iou", defaults.iou) if iou is None else iou,
                "max_det": kept.get("max_det", defaults.max_det) if max_det is None else max_det,
            },
        )
        self.stride = max(self.detector.strides)
        self.imgsz = self.detector.input_size(imgsz or self.metadata.get("imgsz", 640))
        self.device = choose_device(device)
        self.precision = precision_named(self.device, kept.get("precision", "float32"))
        self.detector.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._fused = self.detector.fused()

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
        [found] = detect(self._fused, images, [transform], self.settings, self.precision, multi_label=False)
        return found


def load(weights: str | Path, device: str = "auto", **settings: Any) -> Model:
    """The model of a weight file, ready to look at images. `settings`: imgsz, conf, iou, max_det."""
    return Model(weights, device, **settings)


def find_sources(words: Sequence[str]) -> list[Source]:
    """Files, folders, globs, videos, camera numbers and stream addresses as a list of single sources, in order.

    Raises UsageError if one of them is not there or holds nothing.
    """
    if not words:
        raise UsageError("say where to look: yoloyard predict --weights FILE PICTURES")
    found: list[tuple[str, Path, bool]] = []  # address, name, is optional
    for word in words:
        if _is_stream(word):
            found.append((word, Path(f"camera{word}" if word.isdigit() else "stream"), False))
        elif Path(word).is_dir():
            files = [path for path in sorted(Path(word).rglob("*")) if _is_readable_kind(path)]
            if not files:
                raise UsageError(f"there are no pictures or videos in the folder {word}")
            found += [(str(path), path.relative_to(word), True) for path in files]
        elif Path(word).exists():
            found.append((word, Path(Path(word).name), False))
        else:
            files = [path for path in sorted(map(Path, glob.glob(word, recursive=True))) if _is_readable_kind(path)]
            if not files:
                raise UsageError(f"there is no picture, video or folder {word}")
            found += [(str(path), Path(path.name), True) for path in files]
    taken: set[str] = set()
    sources = []
    for address, name, is_optional in found:
        is_video = _is_stream(address) or Path(address).suffix.lower() in VIDEO_SUFFIXES
        suffix = ".mp4" if is_video else name.suffix if name.suffix.lower() in WRITTEN_SUFFIXES else ".jpg"
        # Labels have the name without its suffix, so that is what must not be taken twice.
        stem, number = str(name.with_suffix("")), 1
        while f"{stem}-{number}" in taken or (number == 1 and stem in taken):
            number += 1
        unique = stem if number == 1 else f"{stem}-{number}"
        taken.add(unique)
        sources.append(Source(address, unique + suffix, is_video, is_optional or len(found) > 1))
    return sources


def predict(
    model: Model,
    sources: Sequence[Source],
    folder: Path,
    save_txt: bool,
    save_json: bool,
    say: Callable[[str], None],
) -> Done:
    """Look at all `sources` and write pictures with boxes, and on demand YOLO txt and JSON, into `folder`.

    A camera goes on until Ctrl-C. What was found until the end, however it comes, is written. A picture of many that
    can't be read is named and counted; raises UserError for one that was asked for by its own name.
    """
    reuse_memory(model.device)
    threads = Threads(model.device.type, say)
    results: list[dict[str, Any]] = []
    videos: dict[str, cv2.VideoWriter] = {}
    sizes: dict[str, tuple[int, int]] = {}  # of the videos, width and height
    done = Done()
    try:
        for source in sources:
            try:
                for picture in _pictures(source):
                    threads.choose(every=SECONDS_BETWEEN_CHOICES)
                    found = model(picture.image)
                    done.pictures += 1
                    say(f"{picture.name}: {_summary(found, model.names)}")
                    drawn = draw_boxes(
                        picture.image, found.boxes.numpy(), found.labels.numpy(), model.names, found.scores.numpy()
                    )
                    _write_picture(folder, picture, drawn, videos, sizes)
                    if save_txt:
                        name = Path(picture.name).with_suffix(".txt")
                        write_whole_text(folder / "labels" / name, _yolo_rows(picture, found))
                    if save_json:
                        results += [{"image": picture.source, **row} for row in _json_rows(found, model.names)]
            except UnreadableError as error:
                if not source.is_optional:
                    raise
                say(f"left out: {error}")
                done.unreadable += 1
    finally:
        threads.restore()
        for writer in videos.values():
            writer.release()
        if save_json:
            write_whole_text(folder / "predictions.json", json.dumps(results, indent=1))
    return done


def _is_stream(word: str) -> bool:
    return "://" in word or (word.isdigit() and not Path(word).exists())


def _is_readable_kind(path: Path) -> bool:
    known = path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
    return known and path.is_file() and not path.name.startswith(".")


def _pixels(image: str | Path | np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return decode_image(Path(image))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"an image must be uint8 RGB (height, width, 3), not {image.dtype} {image.shape}")
    return image


def _pictures(source: Source) -> Iterator[Picture]:
    """The picture of a file, or the frames of a video or camera. Raises UnreadableError."""
    if not source.is_video:
        try:
            yield Picture(source.name, source.address, decode_image(Path(source.address)))
        except UserError as error:
            raise UnreadableError(str(error)) from error
        return
    capture = cv2.VideoCapture(int(source.address) if source.address.isdigit() else source.address)
    try:
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if 1 <= rate <= 240 else 25.0  # streams say all kinds of things
        stem = source.name.removesuffix(".mp4")
        number = 0
        while True:
            there, frame = capture.read()
            if not there:
                break
            pixels = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            yield Picture(f"{stem}/{number:06d}.jpg", f"{source.name}#{number}", pixels, source.name, rate)
            number += 1
        if number == 0:
            raise UnreadableError(f"the video or camera {source.address} gives no picture")
        if _is_stream(source.address):
            raise UnreadableError(f"{source.address} gives no more pictures, after {number}")
    finally:
        capture.release()


def _write_picture(
    folder: Path,
    picture: Picture,
    drawn: np.ndarray,
    videos: dict[str, cv2.VideoWriter],
    sizes: dict[str, tuple[int, int]],
) -> None:
    pixels = cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)
    if picture.video is None:
        path = folder / picture.name
        encoded_well, encoded = cv2.imencode(path.suffix, pixels)
        if not encoded_well:
            raise UserError(f"{picture.source} is too large to be written as {path.suffix}")
        write_whole(path, lambda temporary: temporary.write_bytes(encoded.tobytes()))
        return
    if picture.video not in videos:
        path = folder / picture.video
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (pixels.shape[1], pixels.shape[0])
        code = cv2.VideoWriter.fourcc(*"mp4v")
        videos[picture.video] = cv2.VideoWriter(os.fspath(path), code, picture.frames_per_second, size)
        if not videos[picture.video].isOpened():
            raise UserError(f"cannot write the video {path}: is the disk full or the folder read-only?")
        sizes[picture.video] = size
    if (pixels.shape[1], pixels.shape[0]) != sizes[picture.video]:
        pixels = cv2.resize(pixels, sizes[picture.video])  # a stream may change; a video file can't
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
