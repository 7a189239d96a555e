"""A user's transform of training images: a function or an Albumentations pipeline.

`image, boxes, labels = transform(image, boxes, labels)`: the image (H, W, channels) as the network takes it, of most
data uint8 RGB, else uint8 or uint16 with the channels of the data; float32 (n, 4) xyxy in pixels and int64 (n,). It
comes after mosaic, affine and mixup, before colour jitter and flips. Albumentations knows no uint16: its pipelines get
such images as float32 0..1, in which all values of 16 bits stay apart.
"""

import contextlib
import json
import os
import pickle
import random as python_random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yoloyard.common.errors import UsageError, UserError, user_line
from yoloyard.common.files import write_whole, write_whole_text
from yoloyard.common.structures import Sample
from yoloyard.common.user_file import UserFile
from yoloyard.data.pixels.augment import letterbox

NO_UPDATE_VARIABLE = "NO_ALBUMENTATIONS_UPDATE"
KEPT_PIPELINE = "transform.json"  # in the run's folder
BOX_PARAMS = "bbox_params=A.BboxParams(format='pascal_voc', label_fields=['labels'])"


class Transform:
    """The user's transform. It can be called in any process, and kept in a run's folder for `restore`.

    Raises UsageError or UserError, also in the constructor, if it can't be used.
    """

    def __init__(self, function: Callable[..., Any] | UserFile) -> None:
        self.file = function if isinstance(function, UserFile) else None
        with _without_network():
            self._function: Any = self.file.load("transform") if self.file else function
        if not callable(self._function):
            raise UsageError(f"transform={self._function!r:.80} is neither a function nor FILE.py:NAME")
        self.name = self.file.word if self.file else getattr(function, "__name__", type(function).__name__)
        self.is_pipeline = _is_a(self._function, "albumentations")
        self.label_field = _label_field(self._function, self.name) if self.is_pipeline else None
        # Text is kept only if it gives back an equal pipeline.
        self.saved = _as_json(self._function) if self.is_pipeline and not self.file else None

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        kind = "file" if self.file else "callable" if self.saved is None else "pipeline"
        return {"kind": kind, "name": self.name, "digest": self.file.digest if self.file else None}

    def keep(self, folder: Path) -> None:
        """Write into a run's folder what `restore` needs there."""
        if self.file is not None:
            write_whole(folder / self.file.path.name, partial(Path.write_bytes, data=self.file.source))
        elif self.saved is not None:
            write_whole_text(folder / KEPT_PIPELINE, self.saved)

    def check_spawn(self) -> None:
        """Raises UsageError if it can't be sent to a process that is not forked."""
        try:
            pickle.dumps(self)
        except Exception as error:  # pickle raises all kinds
            raise UsageError(
                f"the transform {self.name} can't be handed to the processes that load images ({error}); define it at "
                "the top level of a module, or use --workers 0"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle can't find by name what a user file defines; the other process runs the file again.
        return Transform, (self.file or self._function,)

    def __call__(self, sample: Sample, random: np.random.Generator, num_classes: int, path: Path) -> Sample:
        """The sample after the transform, as large as before. Boxes are clipped; those without area are left out.

        `random` decides all randomness of the transform. Raises UserError that names the transform and `path`.
        """
        seed = int(random.integers(2**32))
        with _seeded(seed):
            try:
                result = self._call(sample, seed)
            except (Exception, SystemExit) as error:
                code = getattr(self._function, "__code__", getattr(type(self._function).__call__, "__code__", None))
                place = user_line(error, None if self.is_pipeline or code is None else code.co_filename)
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise self._wrong(path, f"{place}: {reason}" if place else reason) from error
        try:
            image, boxes, labels = _checked(result, num_classes, sample.image)
            if self.is_pipeline and self.label_field is None and image.shape != sample.image.shape:
                raise ValueError(f"it changes the image's size, so it must be given the boxes: {BOX_PARAMS}")
        except ValueError as error:
            raise self._wrong(path, str(error)) from error
        return _fitted(sample, image, boxes, labels)

    def _call(self, sample: Sample, seed: int) -> Any:
        if not self.is_pipeline:
            return self._function(sample.image, sample.boxes_xyxy, sample.labels)
        self._function.set_random_seed(seed)
        has_16_bits = sample.image.dtype == np.uint16
        image = sample.image / np.float32(65535) if has_16_bits else sample.image
        given = {} if self.label_field is None else {"bboxes": sample.boxes_xyxy, self.label_field: sample.labels}
        found = self._function(image=image, **given)
        image = found["image"]
        if has_16_bits and isinstance(image, np.ndarray) and image.dtype == np.float32:
            image = (image * 65535).round().clip(0, 65535).astype(np.uint16)
        if self.label_field is None:
            return image, sample.boxes_xyxy, sample.labels
        return image, found["bboxes"], found[self.label_field]

    def _wrong(self, image: Path, reason: str) -> UserError:
        return UserError(f"the transform {self.name} fails on {image}: {reason}")


def restore(folder: Path, facts: Mapping[str, Any]) -> Transform:
    """The transform of the run in `folder`, whose checkpoint has these `facts` (see `Transform.facts`).

    Raises UsageError if it must be handed in again, UserError if its file is gone or has changed.
    """
    if facts["kind"] == "file":
        file = UserFile.read(f"{folder / facts['name']}", "transform", "transform")
        if file.digest != facts["digest"]:
            raise UserError(f"{file.path} is not the file that this run was trained with; put that one back")
        return Transform(file)
    again = f"hand it in again: yoloyard.train(resume={str(folder)!r}, transform={facts['name']})"
    if facts["kind"] == "pipeline":
        path = folder / KEPT_PIPELINE
        try:
            return Transform(_from_json(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except Exception as error:  # whatever the package thinks of it
            raise UsageError(f"{path} gives no pipeline ({error}); {again}") from error
    raise UsageError(f"this run was trained with a transform that is not kept in its folder; {again}")


def _is_a(thing: Any, name: str) -> bool:
    """Whether a class of `thing` is called `name` or comes from the package `name`, which need not be imported."""
    return any(name in (kind.__name__, kind.__module__.split(".")[0]) for kind in type(thing).__mro__)


def _label_field(pipeline: Any, name: str) -> str | None:
    """The keyword that a pipeline takes labels by, None if it is not given boxes. Raises UsageError."""
    if not hasattr(pipeline, "set_random_seed"):
        raise UsageError(f"the transform {name} needs albumentations 2.0 or later")
    boxes = getattr(pipeline, "processors", {}).get("bboxes")
    if boxes is None:
        moving = sorted({type(step).__name__ for step in _steps(pipeline) if _is_a(step, "DualTransform")})
        if moving:
            raise UsageError(f"the transform {name} must be given the boxes ({', '.join(moving)}): {BOX_PARAMS}")
        return None
    params, fields = boxes.params, list(boxes.params.label_fields or ())
    if params.format != "pascal_voc" or len(fields) != 1:
        raise UsageError(
            f"the transform {name} has BboxParams of format {params.format!r} with label_fields {fields}; write "
            f"{BOX_PARAMS}"
        )
    return str(fields[0])


def _steps(pipeline: Any) -> Iterator[Any]:
    yield pipeline
    for step in getattr(pipeline, "transforms", ()):
        yield from _steps(step)


def _as_json(pipeline: Any) -> str | None:
    """A pipeline as text, None if it has parts that text can't hold."""

    def facts(of: Any) -> tuple[str, dict[str, Any]]:
        boxes = getattr(of, "processors", {}).get("bboxes")
        return json.dumps(of.to_dict(), indent=1), vars(boxes.params) if boxes else {}

    try:
        text = facts(pipeline)[0]
        return text if facts(_from_json(text)) == facts(pipeline) else None
    except Exception:  # noqa: BLE001  # functions, arrays, classes of the user's: the package has an error for each
        return None


def _from_json(text: str) -> Any:
    with _without_network():
        import albumentations
    return albumentations.from_dict(json.loads(text))


@contextlib.contextmanager
def _without_network() -> Iterator[None]:
    """While entered, importing Albumentations doesn't look for a newer version of it."""
    before = os.environ.get(NO_UPDATE_VARIABLE)
    os.environ[NO_UPDATE_VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[NO_UPDATE_VARIABLE]
        os.environ |= {} if before is None else {NO_UPDATE_VARIABLE: before}


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """While entered, the generators that a transform may use start from `seed`; then they go on as before."""
    states = python_random.getstate(), np.random.get_state()
    python_random.seed(seed)
    np.random.seed(seed)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's alone
            yield
    finally:
        python_random.setstate(states[0])
        np.random.set_state(states[1])


def _checked(result: Any, num_classes: int, given: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, boxes and labels in their agreed form, the image in that of `given`. Raises ValueError otherwise."""
    if not isinstance(result, tuple | list) or len(result) != 3:
        came = f"{len(result)} things" if isinstance(result, tuple | list) else type(result).__name__
        raise ValueError(f"it must return image, boxes, labels, not {came}")
    image, boxes, labels = result
    is_array = isinstance(image, np.ndarray) and image.ndim == 3
    if not is_array or (image.dtype, image.shape[2]) != (given.dtype, given.shape[2]):
        came = f"{type(image).__name__} {getattr(image, 'dtype', '')} {tuple(getattr(image, 'shape', ()))}"
        raise ValueError(
            f"its image must be a {given.dtype} array (height, width, {given.shape[2]}), not {came}; leave out "
            "normalisation and tensors"
        )
    if 0 in image.shape:
        raise ValueError(f"its image has no pixels: {image.shape}")
    try:
        boxes, labels = np.asarray(boxes, np.float64), np.asarray(labels, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"its boxes (n, 4) and labels (n,) must be numbers: {error}") from error
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != (len(boxes),):
        raise ValueError(f"it returns boxes {boxes.shape} and labels {labels.shape}, not (n, 4) and (n,)")
    if not np.isfinite(boxes).all():
        raise ValueError("its boxes are not finite")
    if not ((labels == np.floor(labels)) & (labels >= 0) & (labels < num_classes)).all():
        raise ValueError(f"its labels must be whole numbers from 0 to {num_classes - 1}, not {labels.tolist()!r:.80}")
    return image, boxes, labels.astype(np.int64)


def _fitted(sample: Sample, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> Sample:
    """The sample with these boxes inside the image, which is letterboxed to the size that it had."""
    if image.shape != sample.image.shape:
        image, way = letterbox(image, (sample.image.shape[0], sample.image.shape[1]))
        boxes = boxes * ([way.scale_x, way.scale_y] * 2) + [way.pad_left, way.pad_top] * 2
    height, width = image.shape[:2]
    boxes = boxes.clip(0, [width, height] * 2).astype(np.float32)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    image, ignore = np.ascontiguousarray(image), np.zeros(int(kept.sum()), bool)
    return replace(sample, image=image, boxes_xyxy=boxes[kept], labels=labels[kept], ignore=ignore)
