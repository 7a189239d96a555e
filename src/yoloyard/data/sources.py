"""From a data.yaml's entries to pictures and boxes: which images there are, where their labels lie, what they say."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from yoloyard.data.data_yaml import DataSpec, find_path
from yoloyard.data.problems import Problem
from yoloyard.errors import UsageError, UserError

IMAGE_SUFFIXES = frozenset((".bmp", ".dib", ".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".webp"))

# Rounding in other programs' exports; what is farther outside is a mistake.
TOLERANCE = 0.01


@dataclass
class LabelFile:
    """What a label file says about its picture."""

    boxes_norm: np.ndarray  # float64 (k, 4) xyxy as fractions of width and height, inside 0..1
    labels: np.ndarray  # int64 (k,)
    problems: list[Problem] = field(default_factory=list)
    usable: bool = True  # False: a row is wrong, so that boxes may be missing


def list_images(spec: DataSpec, split: str) -> tuple[list[Path], list[Problem]]:
    """The image files of a split, sorted, each once; and the lines of list files that lead to no file.

    Folders are searched with all that is in them; files are told by their suffix.
    Raises UsageError if the split is not in the data.yaml, UserError if an entry does not exist or there is no image.
    """
    if split not in spec.splits:
        there = ", ".join(spec.splits)
        raise UsageError(f"{spec.path} has no {split!r}; it names {there}")
    images: set[str] = set()
    problems: list[Problem] = []
    for entry in spec.splits[split]:
        if os.path.isdir(entry):
            images.update(_images_below(entry))
        elif not os.path.exists(entry):
            raise UserError(f"{spec.path}: {split} is {entry}, which does not exist")
        elif entry.suffix.lower() in IMAGE_SUFFIXES:
            images.add(str(entry))
        else:
            listed, missing = _images_listed(entry, spec)
            images.update(listed)
            problems += missing
    if not images:
        where = ", ".join(str(entry) for entry in spec.splits[split])
        reason = f"; first problem: {problems[0]}" if problems else ""
        raise UserError(f"no images for {split!r} in {where} ({', '.join(sorted(IMAGE_SUFFIXES))} count){reason}")
    return [Path(image) for image in sorted(images)], problems


def label_path(image: Path) -> Path:
    """Where the labels of `image` are: the last folder `images` of its path replaced by `labels`, suffix .txt.

    Without such a folder, or if only the other file exists, it is the text file beside the image.
    """
    beside = image.with_suffix(".txt")
    folders = image.parts[:-1]
    for position in range(len(folders) - 1, -1, -1):
        if folders[position] == "images":
            mirrored = Path(*folders[:position], "labels", *folders[position + 1 :], beside.name)
            return beside if not os.path.exists(mirrored) and os.path.exists(beside) else mirrored
    return beside


def parse_labels(path: Path, content: bytes, num_classes: int) -> LabelFile:
    """Boxes of a YOLO text file: rows `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...` (a polygon), as fractions.

    Both kinds may be mixed; a polygon becomes its bounds. Boxes are clipped to the picture; rows that say the same
    are kept once, rows whose box has no area are left out. A row that is wrong makes the file unusable.
    """
    result = LabelFile(np.zeros((0, 4)), np.zeros(0, np.int64))
    rows: dict[tuple[float, ...], None] = {}
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        what = f"not a UTF-8 text file (byte {error.start})"
        result.problems.append(Problem("label unreadable", str(path), what, "image skipped"))
        result.usable = False
        return result
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        try:
            row = _parse_row(words, num_classes)
        except ValueError as error:
            kind, what = error.args
            result.problems.append(Problem(kind, f"{path}:{number}", what, "image skipped"))
            result.usable = False
            continue
        if row[3] <= row[1] or row[4] <= row[2]:
            result.problems.append(
                Problem("box without area", f"{path}:{number}", "the box has no area", "row left out")
            )
            continue
        if row in rows:
            result.problems.append(Problem("label twice", f"{path}:{number}", "the same row as above", "row left out"))
        rows[row] = None
    if rows:
        table = np.array(list(rows), dtype=np.float64)
        result.labels, result.boxes_norm = table[:, 0].astype(np.int64), table[:, 1:]
    return result


def _parse_row(words: list[str], num_classes: int) -> tuple[float, float, float, float, float]:
    """Class and clipped xyxy of a row; raises ValueError(kind, reason) if the row is wrong."""
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        word = next(word for word in words if not _is_number(word))
        raise ValueError("label malformed", f"{word!r} is not a number") from None
    label, values = numbers[0], numbers[1:]
    if not (label.is_integer() and 0 <= label < num_classes):
        raise ValueError("class unknown", f"class {words[0]} is not one of 0 to {num_classes - 1}")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        what = f"{len(words)} numbers; a box has 5 (class cx cy w h), a polygon 7, 9, 11 ..."
        raise ValueError("label malformed", what)
    for word, value in zip(words[1:], values, strict=True):
        if not -TOLERANCE <= value <= 1 + TOLERANCE:  # also false for nan
            what = f"{word} is outside 0..1; labels are fractions of the image's width and height"
            raise ValueError("label outside the image", what)
    if len(values) == 4:
        centre_x, centre_y, width, height = values
        if width < 0 or height < 0:
            raise ValueError("box without area", f"the size {words[3]} {words[4]} is negative")
        corners = (centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
    else:
        corners = (min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2]))
    left, top, right, bottom = (min(max(value, 0.0), 1.0) for value in corners)
    return label, left, top, right, bottom


def _is_number(word: str) -> bool:
    try:
        return not math.isnan(float(word))
    except ValueError:
        return False


def _images_below(folder: Path) -> list[str]:
    images = []
    seen = set()  # a link that leads upwards would be followed for ever
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable_folder):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # Names that begin with a dot are other systems' side files, such as `._picture.jpg`.
        images += [
            os.path.join(parent, name)
            for name in files
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    return images


def _unreadable_folder(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error


def _images_listed(list_file: Path, spec: DataSpec) -> tuple[list[str], list[Problem]]:
    """The images named by a text file, one a line, and the lines whose file does not exist."""
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{list_file} is neither a folder nor a text file that lists images ({error})") from error
    images: list[str] = []
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry:
            continue
        if entry.startswith("./"):
            folders = (list_file.parent, spec.root, spec.path.parent)
        else:
            folders = (spec.root, spec.path.parent, list_file.parent)
        image = find_path(entry, folders)
        if os.path.isfile(image):
            images.append(str(image))
        else:
            problems.append(Problem("image missing", f"{list_file}:{number}", f"there is no image {image}"))
    return images, problems
