"""Objects in images, folders, videos and cameras, with the weights of a run."""

from __future__ import annotations

import functools
import glob
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
import torch

from yoloyard.common.cores import Threads
from yoloyard.common.device import choose_device, precision_named
from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.files import is_full, name_that_fits, plain_path, write_whole, write_whole_text
from yoloyard.common.structures import Detections
from yoloyard.common.video import VIDEO_SUFFIXES, UnreadableError, VideoFile, is_video, read_frames
from yoloyard.config.settings import EvaluationConfig, TrainConfig, checked_overrides, with_overrides
from yoloyard.cpu.memory import reuse_memory
from yoloyard.data.formats.layout import Search, is_marked, is_side_folder, search_folder
from yoloyard.data.pixels.arrays import is_one_image, pixels_of
from yoloyard.data.pixels.augment import letterbox, minimal_shape
from yoloyard.data.pixels.decode import IMAGE_SUFFIXES, decode_image
from yoloyard.evaluation.metrics.showing import Showing
from yoloyard.evaluation.report.drawing import draw_boxes
from yoloyard.evaluation.validate import detect, fused_for
from yoloyard.models.weights import load_image_model

log = logging.getLogger(__name__)

SECONDS_BETWEEN_CHOICES = 5.0  # of the number of threads


WRITTEN_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp"))


@dataclass(frozen=True)
class Source:
    """Where images come from: a file, a video, or a camera."""

    address: str  # path, camera number, or stream address
    name: str  # of the results, relative to their folder and unlike that of any other source
    is_video: bool
    is_optional: bool = False  # one of many, found in a folder or by a glob: the others are looked at without it


@dataclass(frozen=True)
class SourceImage:
    """An image to look at: its name for the results and its pixels."""

    name: str
    source: str
    image: np.ndarray  # uint8 RGB (H, W, 3)
    frames_per_second: float = 0.0  # of the video or camera that it is a frame of


@dataclass
class Done:
    """How many images were looked at, how many sources could not be read in full, how many results not written."""

    images: int = 0
    unreadable: int = 0
    unwritten: int = 0


class Model:
    """A detector with the settings of its weight file: `model(image)` gives Detections.

    `conf` and `iou` are by default the pair that the training chose for showing (see `evaluation/showing.py`).
    `image` is a path, a uint8 RGB array (H, W, 3), a PIL image, or a list of these, which gives a list.
    """

    def __init__(
        self,
        weights: str | Path,
        device: str | int | torch.device | None = "auto",
        imgsz: int | None = None,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
    ) -> None:
        if not isinstance(weights, str | os.PathLike) or not str(weights).strip():
            raise UsageError(f"say which weights file to load: a path, not {weights!r:.80}")
        asked = {"weights": weights, "device": device} | ({} if imgsz is None else {"imgsz": imgsz})
        words = checked_overrides(TrainConfig, asked)
        self.detector, self.metadata = load_image_model(Path(words["weights"]))
        numbers = map(str, range(self.detector.num_classes))
        self.names: tuple[str, ...] = tuple(self.metadata.get("names") or numbers)
        kept, showing = self.metadata.get("evaluation", {}), Showing.of(self.metadata)
        defaults = EvaluationConfig()
        self.settings = with_overrides(
            defaults,
            {
                "conf": showing.conf if conf is None else conf,
                "iou": showing.iou if iou is None else iou,
                "max_det": kept.get("max_det", defaults.max_det) if max_det is None else max_det,
            },
        )
        self.stride = max(self.detector.strides)
        self.imgsz = self.detector.input_size(words.get("imgsz", self.metadata.get("imgsz", 640)))
        self.device = choose_device(words.get("device", "auto"))
        self.precision = precision_named(self.device, kept.get("precision", "float32"))
        self.detector.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._fused = fused_for(self.detector, self.precision)

    def __call__(self, images: Any) -> Any:
        """Detections of an image, or a list of them for a list of images; boxes xyxy in pixels of each image.

        Raises UserError if an image can't be read or is something else (see `data.arrays.pixels_of`).
        """
        if is_one_image(images) or hasattr(images, "read"):  # an open file gives lines
            return self._detect(_pixels(images))
        return [self._detect(_pixels(image)) for image in images]

    def _detect(self, image: np.ndarray) -> Detections:
        shape = minimal_shape(image.shape[0], image.shape[1], self.imgsz, self.stride)
        boxed, transform = letterbox(image, shape)
        images = torch.from_numpy(np.ascontiguousarray(boxed)).permute(2, 0, 1)[None].to(self.device)
        [found] = detect(self._fused, images, [transform], self.settings, self.precision, multi_label=False)
        return found


def find_sources(words: Sequence[str]) -> list[Source]:
    """Files, folders, globs, videos, camera numbers and stream addresses as a list of single sources, in order.

    Folders are searched as `search_folder` does; what is passed over is logged.
    Raises UsageError if one of them is not there or holds nothing.
    """
    if not words:
        raise UsageError("say where to look: yoloyard predict --weights FILE IMAGES")
    found: list[tuple[str, Path, bool]] = []  # address, name, is optional
    videos: set[str] = set()  # known by their content
    for word in map(os.path.expanduser, map(_without_scheme, words)):
        if _is_stream(word):
            found.append((word, Path(f"camera{word}" if word.isdigit() else "stream"), False))
        elif os.path.isdir(word):
            search = search_folder(Path(word), IMAGE_SUFFIXES | VIDEO_SUFFIXES)
            passed_over = search.passed_over()
            files = sorted(map(Path, search.files))
            if not files:
                reason = f"; {passed_over}" if passed_over else ""
                raise UsageError(f"there are no images or videos in the folder {word}{reason}")
            if passed_over:
                log.info(f"{word}: {passed_over}")
            found += [(str(path), path.relative_to(word), True) for path in files]
        elif os.path.exists(word):
            _check_kind(word)
            if Path(word).suffix.lower() not in VIDEO_SUFFIXES and is_video(Path(word)):
                videos.add(word)
            found.append((word, Path(Path(word).name), False))
        else:
            search = _search_glob(word)
            passed_over = search.passed_over()
            if not search.files:
                reason = f"; {passed_over}" if passed_over else ""
                raise UsageError(f"there is no image, video or folder {word or repr(word)}{reason}")
            if passed_over:
                log.info(f"{word}: {passed_over}")
            found += [(path, Path(Path(path).name), True) for path in search.files]
    taken: set[str] = set()
    sources = []
    for address, name, is_optional in found:
        has_frames = _is_stream(address) or address in videos or Path(address).suffix.lower() in VIDEO_SUFFIXES
        suffix = ".mp4" if has_frames else name.suffix if name.suffix.lower() in WRITTEN_SUFFIXES else ".jpg"
        # Labels have the name without its suffix, so that is what must not be taken twice.
        number = 1
        while (unique := _numbered(name.with_suffix(""), number, suffix)) in taken:
            number += 1
        taken.add(unique)
        sources.append(Source(address, unique + suffix, has_frames, is_optional or len(found) > 1))
    return sources


def predict(
    model: Model,
    sources: Sequence[Source],
    folder: Path,
    save_txt: bool,
    save_json: bool,
) -> Done:
    """Look at all `sources` and write images with boxes, and on demand YOLO txt and JSON, into `folder`.

    A camera goes on until Ctrl-C. What was found until the end, however it comes, is written. What can't be read, or
    not in full, and results that can't be written are named and counted. Raises UserError if the only source can't be
    read at all, and if the disk is full.
    """
    reuse_memory(model.device)
    threads = Threads(model.device.type)
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
                for image in _images(source):
                    threads.choose(every=SECONDS_BETWEEN_CHOICES)
                    found = model(image.image)
                    done.images += 1
                    log.info(f"{image.name}: {_summary(found, model.names)}")
                    if save_json:
                        results += [{"image": image.source, **row} for row in _json_rows(found, model.names)]
                    if save_txt:
                        path = folder / "labels" / Path(image.name).with_suffix(".txt")
                        attempt(partial(write_whole_text, path, _yolo_rows(image, found)))
                    drawn = draw_boxes(
                        image.image, found.boxes.numpy(), found.labels.numpy(), model.names, found.scores.numpy()
                    )
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


def _check_kind(path: str) -> None:
    """Raises UsageError for what may be waited for without end."""
    if not os.path.isfile(path) and not os.path.isdir(path):
        hint = "; a camera is named by its number" if path.startswith("/dev/video") else ""
        raise UsageError(f"{path} is a pipe, a socket or a device: name a file or a folder{hint}")


def _pixels(image: Any) -> np.ndarray:
    try:
        if isinstance(image, str | os.PathLike) and os.path.exists(path := os.path.expanduser(image)):
            _check_kind(os.fsdecode(path))
        return pixels_of(image)
    except (NotImplementedError, TypeError, ValueError) as error:  # a meta or sparse tensor, a path with a NUL byte
        raise UserError(f"an image can't be {type(image).__name__} {image!r:.40}: {error}") from error


def _without_scheme(word: str) -> str:
    """The path that an address such as file:///home/ada/a%20b.mp4 means; other words as they are."""
    said = re.fullmatch(r"(?i:file:(?://(?:localhost)?)?)(/.*)", word, re.DOTALL)
    if said is None or os.path.exists(word):
        return word
    path = said[1]
    return path if os.path.exists(path) else unquote(path, errors="surrogateescape")


def _is_stream(word: str) -> bool:
    return ("://" in word or word.isdecimal()) and not os.path.exists(word)


def _search_glob(pattern: str) -> Search:
    """The files of a pattern such as **/*.jpg, in order, without those in a folder that `search_folder` passes over."""
    search = Search()
    named = ("", *Path(pattern).parts)
    marked = functools.cache(lambda folder: is_marked(os.listdir(folder)))
    for path in sorted(map(Path, glob.glob(pattern, recursive=True))):
        below = [each for each in path.parents if each.name not in named]
        side = next((str(each) for each in reversed(below) if is_side_folder(each.name) or marked(each)), None)
        if side is None and not path.is_dir():
            search.take(str(path), IMAGE_SUFFIXES | VIDEO_SUFFIXES, path.is_file())
        elif side is not None and side not in search.other_folders:
            search.other_folders.append(side)
    return search


def _images(source: Source) -> Iterator[SourceImage]:
    """The image of a file, or the frames of a video or camera. Raises UnreadableError."""
    if source.is_video:
        stem = source.name.removesuffix(".mp4")
        for frame in read_frames(source.address, _is_stream(source.address)):
            name, origin = f"{stem}/{frame.number:06d}.jpg", f"{source.name}#{frame.number}"
            yield SourceImage(name, origin, frame.image, frame.frames_per_second)
        return
    try:
        image = decode_image(Path(source.address))
    except UserError as error:
        raise UnreadableError(str(error)) from error
    with plain_path(Path(source.address)) as opened:
        count = cv2.imcount(opened)
    if count > 1:
        log.info(f"{source.address}: the first of {count} frames or pages is taken")
    yield SourceImage(source.name, source.address, image)


def _numbered(path: Path, number: int, suffix: str) -> str:
    """The name of a result without its suffix, the second of equal ones `name-2`; cut where it would be too long."""
    return str(path.with_name(name_that_fits(path.name, "" if number == 1 else f"-{number}", suffix)))


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
    if not len(found):
        return "nothing found"
    labels, counts = found.labels.unique(return_counts=True)
    return ", ".join(f"{count} {names[label]}" for label, count in zip(labels.tolist(), counts.tolist(), strict=True))


def _yolo_rows(image: SourceImage, found: Detections) -> str:
    """Rows `class cx cy w h score`, normalised."""
    height, width = image.image.shape[:2]
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
