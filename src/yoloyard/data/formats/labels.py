"""What the labels of an image, k boxes, say, whatever format they are written in."""

import codecs
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from yoloyard.data.audit.problems import Problem

TOLERANCE = 0.01  # share of a side: rounding in other programs' exports; what is farther outside is a mistake

Row = TypeVar("Row")


def decoded(content: bytes) -> str:
    """A file's text: UTF-8, or UTF-16 where it begins with its mark, as of PowerShell. Raises UnicodeDecodeError."""
    return content.decode("utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")


def composed(text: str) -> str:
    """A name as it is compared: each letter and its accents as one character (NFC). macOS writes several (NFD)."""
    return unicodedata.normalize("NFC", text)


def is_set(flag: object) -> bool:
    """Whether a flag such as iscrowd or difficult is set: 1, 1.0, true or yes, as a value or a text."""
    return str(flag).strip().lower() in ("1", "1.0", "true", "yes")


@dataclass
class Labels:
    """The boxes of an image and what is wrong with them."""

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))  # float64 (k, 4) xyxy pixels, clipped
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # int64 (k,)
    ignore: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # bool (k,) crowd and difficult
    problems: list[Problem] = field(default_factory=list)  # each with file and line
    usable: bool = True  # False: something is wrong, so that boxes may be missing

    def refuse(self, kind: str, where: str, what: str) -> None:
        """Note what makes the image unusable."""
        self.problems.append(Problem(kind, where, what, "image skipped"))
        self.usable = False

    def take_rows(
        self, path: Path, rows: Iterable[tuple[int | str, Row]], parse: Callable[[Row], tuple[float, ...]], unit: str
    ) -> None:
        """Fill in the boxes of a file's rows, each given with its line, or with what it is called there.

        `parse` gives label, whether to ignore it, xyxy, and more where rows of one box may differ; or it raises
        LabelError, which makes the image unusable. Rows that say the same count once, those without area not at all;
        `unit` is what a row is called.
        """
        places: dict[tuple[float, ...], int | str] = {}
        for place, content in rows:
            where = f"{path}:{place}" if isinstance(place, int) else f"{path} {place}"
            try:
                row = parse(content)
            except LabelError as error:
                self.refuse(error.kind, where, str(error))
                continue
            if row[4] <= row[2] or row[5] <= row[3]:
                self.problems.append(Problem("box without area", where, "the box has no area", f"{unit} left out"))
            elif row in places:
                same = f"line {places[row]}" if isinstance(place, int) else places[row]
                self.problems.append(Problem("label twice", where, f"it says the same as {same}", f"{unit} left out"))
            else:
                places[row] = place
        if places:
            table = np.array(list(places), dtype=np.float64)
            self.labels, self.ignore, self.boxes = table[:, 0].astype(np.int64), table[:, 1] > 0, table[:, 2:6]


@dataclass
class SplitLabels:
    """What a file says that has the labels of N images."""

    file_names: list[str]  # N
    image_ids: list[int | str]  # N
    places: list[str]  # N, how messages name an image
    category_ids: list[int]  # of the class names; ids that the file hasn't got where it lacks a class
    problems: list[Problem]  # but for those that the sizes of images show
    images_left_out: int  # which can't be told apart, or have no name
    labels: Callable[[np.ndarray], list[Labels]]  # of each image, by sizes int (N, 2) height, width; 0: can't be used


@dataclass(frozen=True)
class LabelledImage:
    """An image that can be used, read from a data set or to be written in another format."""

    name: str  # relative, with its suffix; as the file of the split says, else from the folder of the split's images
    size: tuple[int, int]  # height, width
    boxes: np.ndarray  # float (k, 4) xyxy pixels
    labels: np.ndarray  # int64 (k,)
    ignore: np.ndarray  # bool (k,)
    image_id: int


class LabelError(Exception):
    """A label is wrong; the kind of problem, and the reason for a person."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


def clip(box: Sequence[float], size: tuple[int, int], said: Callable[[], str]) -> list[float]:
    """A box xyxy cut at the edges of an image of `size` (height, width).

    Raises LabelError if a side is negative, or if it leaves the image beyond the tolerance; `said` is how the file
    writes it.
    """
    if box[2] < box[0] or box[3] < box[1]:
        raise LabelError("box without area", f"the size {box[2] - box[0]:g} {box[3] - box[1]:g} is negative")
    height, width = size
    sides = (width, height, width, height)
    for value, side in zip(box, sides, strict=True):
        if not -TOLERANCE * side <= value <= (1 + TOLERANCE) * side:
            raise LabelError("label outside the image", f"{said()} is outside the image of {width}x{height}")
    return [min(max(0.0, value), float(side)) for value, side in zip(box, sides, strict=True)]
