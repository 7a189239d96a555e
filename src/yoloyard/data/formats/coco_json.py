"""COCO JSON: one file a split, images and annotations with ids, boxes [x, y, width, height] in pixels.

Shapes: N images of the file, n annotations. Coordinates are kept in float64 and go through no fractions.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yoloyard.common.errors import UserError
from yoloyard.data.audit.problems import Problem
from yoloyard.data.formats.labels import Labels, clip, composed, is_set, outside
from yoloyard.data.formats.layout import spellings

_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')
_UNKNOWN_CLASS, _NO_CLASS = -1, -2  # in place of a label: the id of no class name, and no id at all


@dataclass(frozen=True)
class CocoFile:
    """A COCO JSON as bytes. Parsing a large one takes seconds; whether an index of it is kept is known without."""

    path: Path
    content: bytes
    file_names: list[str]  # those of its images, and perhaps others that it mentions
    folder: Path  # where its images are

    def digest(self) -> str:
        """Changes with the content."""
        return hashlib.sha256(self.content).hexdigest()

    def image(self, file_name: str) -> Path:
        """Where the image of this `file_name` is, in one of its spellings; or would be."""
        places = (os.path.join(self.folder, each) for each in spellings(file_name))
        return Path(next(filter(os.path.isfile, places), os.path.join(self.folder, file_name)))


@dataclass
class CocoSet:
    """A parsed COCO JSON. Images are ordered by their ids, annotations by image and then as in the file."""

    path: Path
    image_ids: list[int | str]  # N
    file_names: list[str]  # N
    image_sizes: np.ndarray  # float64 (N, 2) height, width as the file says, 0 where it doesn't
    category_ids: list[int]  # of the class names; ids that the file hasn't got where it lacks a class
    annotation_names: list[str]  # n, for messages: annotation id 17
    image_rows: np.ndarray  # int64 (n,)
    labels: np.ndarray  # int64 (n,); negative: not one of the class names
    categories: list[object]  # n, how the file calls the class; its id where that is not one of the categories
    boxes_xywh: np.ndarray  # float64 (n, 4) pixels; nan where there is no box
    ignore: np.ndarray  # bool (n,) crowds
    problems: list[Problem]
    images_left_out: int  # which can't be told apart, or have no name

    def where(self, row: int) -> str:
        """How messages name an image."""
        return f"{self.path} image id {self.image_ids[row]}"


def read_coco_file(path: Path) -> bytes:
    """The content of a COCO JSON, as UTF-8 whatever it is in by RFC 4627. Raises UserError if it can't be read."""
    try:
        content = path.read_bytes()
        encoding = json.detect_encoding(content)
        return content if encoding == "utf-8" else content.decode(encoding).encode()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error


def file_names_in(path: Path, content: bytes) -> list[str]:
    """All file names that a COCO JSON mentions, in its order, found without parsing the rest."""
    try:
        names: list[str] = json.loads(b"[" + b",".join(_FILE_NAME.findall(content)) + b"]")
    except ValueError as error:
        raise UserError(f"{path}: a file_name is not valid JSON ({error})") from error
    return names


def category_names(path: Path, content: bytes) -> list[str]:
    """The names of a COCO JSON's categories in the order of their ids, each once. Raises UserError if it has none."""
    found = list(_CATEGORIES.finditer(content))
    categories: Any = None
    if len(found) == 1:  # no need to parse the rest, which may be hundreds of megabytes
        try:
            categories, _ = json.JSONDecoder().raw_decode(content[found[0].end() :].decode("utf-8"))
        except (ValueError, RecursionError):
            categories = None  # the parser of the whole file says what is wrong
    if categories is None:
        categories = _parse(path, content).get("categories")
    names = list(dict.fromkeys(_categories(path, categories).values()))
    if not names:
        raise UserError(f"{path} has no categories; list the classes as names in the data.yaml")
    return names


def parse_coco(file: CocoFile, names: Sequence[str]) -> CocoSet:
    """The images and annotations of a COCO JSON, categories mapped onto class `names` by their names.

    Raises UserError if it isn't a COCO JSON. What is wrong with single images and annotations is in `problems`, or
    comes to light in `coco_labels`.
    """
    path, tree = file.path, _parse(file.path, file.content)
    problems: list[Problem] = []
    categories = _categories(path, tree.get("categories"))
    images = _images(path, tree.get("images"), problems)
    rows = {image_id: row for row, image_id in enumerate(images)}
    same_image, same_category = _by_meaning(images), _by_meaning(categories)
    number = {composed(name): label for label, name in reversed(list(enumerate(names)))}
    label_of = {category: number.get(composed(name), _UNKNOWN_CLASS) for category, name in categories.items()}

    annotations = tree.get("annotations", [])
    if not isinstance(annotations, list):
        raise UserError(f"{path}: annotations is not a list")
    left_out = {_id(image.get("id")) for image in tree["images"] if isinstance(image, dict)} - rows.keys()
    kept, where, image_rows, labels, called = [], [], [], [], []
    for position, annotation in enumerate(annotations):
        own = annotation if isinstance(annotation, dict) else {}
        name = f"annotation id {own['id']}" if "id" in own else f"annotations[{position}]"
        image_id, category = _id(own.get("image_id")), _id(own.get("category_id"))
        image_id = same_image.get(_plain(image_id), image_id) if image_id not in rows else image_id
        category = same_category.get(_plain(category), category) if category not in categories else category
        if image_id in rows:
            kept.append(own)
            where.append(name)
            image_rows.append(rows[image_id])
            none = _UNKNOWN_CLASS if isinstance(category, int) else _NO_CLASS
            labels.append(none if category is None else label_of.get(category, none))
            called.append(categories[category] if category in categories else own.get("category_id"))
        elif image_id is None or image_id not in left_out:  # images that are left out are named already
            if image_id is not None:
                what = f"image id {image_id} is not among its images"
            elif "image_id" in own:
                what = f"its image_id {own['image_id']!r} is neither a whole number nor a text"
            else:
                what = "it names no image_id"
            problems.append(Problem("label malformed", f"{path} {name}", what, "annotation left out"))
    boxes = [_box(annotation) for annotation in kept]
    crowd = np.array([is_set(annotation.get("iscrowd")) for annotation in kept], bool)
    order = np.argsort(np.array(image_rows, np.int64), kind="stable")
    return CocoSet(
        path=path,
        image_ids=list(images),
        file_names=[image["file_name"] for image in images.values()],
        image_sizes=np.array([(_side(each, "height"), _side(each, "width")) for each in images.values()]).reshape(
            -1, 2
        ),
        category_ids=_category_ids(label_of, len(names)),
        annotation_names=[where[position] for position in order],
        image_rows=np.array(image_rows, np.int64)[order],
        labels=np.array(labels, np.int64)[order],
        categories=[called[position] for position in order],
        boxes_xywh=np.array(boxes, np.float64).reshape(-1, 4)[order],
        ignore=crowd[order],
        problems=problems,
        images_left_out=len(tree["images"]) - len(images),
    )


def coco_labels(coco: CocoSet, sizes: np.ndarray) -> list[Labels]:
    """The labels of each image, clipped to images of `sizes` int (N, 2) height, width; nothing where that is 0.

    Annotations of an image that say the same are kept once, those whose box has no area are left out. One that is
    wrong makes the image unusable, and so does a size that isn't the image's.
    """
    rows, labels, ignore = coco.image_rows, coco.labels, coco.ignore
    size = sizes[rows].astype(np.float64)
    boxes = np.concatenate([coco.boxes_xywh[:, :2], coco.boxes_xywh[:, :2] + coco.boxes_xywh[:, 2:]], axis=1)
    missing: np.ndarray = np.logical_not(np.isfinite(coco.boxes_xywh).all(1))
    negative = np.logical_or(coco.boxes_xywh[:, 2] < 0, coco.boxes_xywh[:, 3] < 0)
    wrong: np.ndarray = (labels < 0) | missing | negative | outside(boxes, size)
    clipped = clip(np.nan_to_num(boxes), size)
    flat: np.ndarray = ~wrong & (clipped[:, 2:] <= clipped[:, :2]).any(1)
    twice: np.ndarray = ~wrong & ~flat & _repeated(np.column_stack([rows, labels, ignore, coco.boxes_xywh]))
    good: np.ndarray = ~(wrong | flat | twice)

    counts = np.bincount(rows, minlength=len(sizes))
    ends = np.cumsum(counts)
    result = []
    for start, end in zip(ends - counts, ends, strict=True):
        mine = slice(start, end)
        if not good[mine].all():
            mine = np.flatnonzero(good[mine]) + start
        result.append(Labels(clipped[mine], labels[mine], ignore[mine]))
    differs: np.ndarray = (coco.image_sizes > 0).all(1) & (sizes > 0).all(1) & (coco.image_sizes != sizes).any(1)
    for row in np.flatnonzero(differs).tolist():
        (height, width), (true_height, true_width) = coco.image_sizes[row], sizes[row]
        what = f"it says {width:g}x{height:g} pixels, {coco.file_names[row]} has {true_width}x{true_height}"
        result[row].refuse("image size differs", coco.where(row), what)
    known: np.ndarray = (sizes > 0).all(1) & ~differs
    for position in np.flatnonzero(~good & known[rows]).tolist():
        own, where = result[rows[position]], f"{coco.path} {coco.annotation_names[position]}"
        if twice[position]:
            what = "the image has an annotation that says the same"
            own.problems.append(Problem("label twice", where, what, "annotation left out"))
        elif flat[position]:
            own.problems.append(Problem("box without area", where, "the box has no area", "annotation left out"))
        elif labels[position] == _NO_CLASS:
            what = f"its category_id {coco.categories[position]!r} is not a whole number or an id of its categories"
            own.refuse("label malformed", where, what)
        elif labels[position] == _UNKNOWN_CLASS:
            own.refuse("class unknown", where, f"category {coco.categories[position]!r} is not one of the classes")
        elif missing[position]:
            own.refuse("label malformed", where, "it has neither a bbox of 4 numbers nor a polygon")
        else:
            x, y, width, height = coco.boxes_xywh[position]
            if negative[position]:
                own.refuse("box without area", where, f"the size {width:g} {height:g} is negative")
            else:
                true_height, true_width = sizes[rows[position]]
                what = f"the bbox {x:g} {y:g} {width:g} {height:g} is outside the image of {true_width}x{true_height}"
                own.refuse("label outside the image", where, what)
    return result


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(tree, dict) or "images" not in tree:
        what = "COCO JSON is an object with images, annotations and categories"
        hint = "; a list of results is not a data set" if isinstance(tree, list) else ""
        raise UserError(f"{path}: {what}{hint}")
    return tree


def _categories(path: Path, value: Any) -> dict[int | str, str]:
    """Names by ids, in the order of ids: numbers, then texts."""
    if not isinstance(value, list):
        raise UserError(f"{path}: categories is not a list")
    found: dict[int | str, str] = {}
    for position, category in enumerate(value):
        own = category if isinstance(category, dict) else {}
        number, name = _id(own.get("id")), own.get("name")
        if number is None or not isinstance(name, str | int | float):
            raise UserError(f"{path}: categories[{position}] has no number or text as its id, or no name")
        if number in found:
            raise UserError(f"{path}: two categories have the id {number}")
        found[number] = str(name)
    return dict(sorted(found.items(), key=_order))


def _images(path: Path, value: Any, problems: list[Problem]) -> dict[int | str, dict[str, Any]]:
    """The images that can be told apart, by their ids, in the order of ids: numbers, then texts."""
    if not isinstance(value, list):
        raise UserError(f"{path}: images is not a list")
    found: dict[int | str, dict[str, Any]] = {}
    by_name: dict[str, int | str] = {}
    for position, image in enumerate(value):
        own = image if isinstance(image, dict) else {}
        number, name = _id(own.get("id")), own.get("file_name")
        where = f"{path} images[{position}]" if number is None else f"{path} image id {number}"
        if number is None:
            what = f"its id {own['id']!r} is neither a whole number nor a text" if "id" in own else "it has no id"
            problems.append(Problem("label malformed", where, what, "image skipped"))
        elif not isinstance(name, str) or not name or "\0" in name:
            problems.append(Problem("label malformed", where, "it has no file_name", "image skipped"))
        elif number in found:
            problems.append(Problem("label malformed", where, "another image has this id", "image skipped"))
        elif name in by_name:
            what = f"image id {by_name[name]} has the same file_name {name}"
            problems.append(Problem("label malformed", where, what, "image skipped"))
        else:
            found[number], by_name[name] = own, number
    return dict(sorted(found.items(), key=_order))


def _by_meaning(ids: Iterable[int | str]) -> dict[int | str | None, int | str]:
    """The ids by what `_plain` makes of them, but for those that would be the same."""
    plain = {each: _plain(each) for each in ids}
    counts = Counter(plain.values())
    return {meaning: each for each, meaning in plain.items() if counts[meaning] == 1}


def _plain(value: int | str | None) -> int | str | None:
    """An id without zeros in front: annotations may call the image "000017" 17."""
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,19}", value) else value


def _id(value: Any) -> int | str | None:
    """An id, a whole number where it can be read as one, else a text; None for anything else."""
    number = _whole_number(value)
    if number is None and isinstance(value, int | str) and not isinstance(value, bool):
        return str(value) or None
    return number


def _whole_number(value: Any) -> int | None:
    """An id of at most 64 bits, 2.0 (as tables of floats are exported) and "2" being 2; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"0|-?[1-9][0-9]{0,18}", value):  # 007 is a text of its own
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = int(value) if isinstance(value, int) or value.is_integer() else None
    return number if number is not None and -(2**63) <= number < 2**63 else None


def _side(image: dict[str, Any], side: str) -> float:
    value = image.get(side)
    return float(value) if isinstance(value, int | float) and 0 < value < 1e9 else 0.0


def _box(annotation: dict[str, Any]) -> list[float]:
    """x, y, width, height of an annotation, from its polygons if it has no bbox; nan if there is neither."""
    box = annotation.get("bbox")
    try:
        if isinstance(box, list) and len(box) == 4:
            return [float(value) for value in box]
        polygons = annotation.get("segmentation")
        if not box and isinstance(polygons, list) and polygons:
            x = [float(value) for polygon in polygons for value in polygon[0::2]]
            y = [float(value) for polygon in polygons for value in polygon[1::2]]
            if len(x) == len(y) and np.isfinite(x + y).all():
                return [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    except (TypeError, ValueError, OverflowError):
        pass  # what is no number is no box either
    return [np.nan] * 4


def _order(item: tuple[int | str, Any]) -> tuple[bool, int | str]:
    return isinstance(item[0], str), item[0]


def _category_ids(label_of: dict[int | str, int], num_classes: int) -> list[int]:
    """The id of each class: the file's first of that name, or a free one where the file lacks the class."""
    numbers = [(category, label) for category, label in label_of.items() if isinstance(category, int)]
    found = {label: category for category, label in reversed(numbers)}
    free = max((category for category, _ in numbers), default=-1) + 1
    return [found.get(label, free + label) for label in range(num_classes)]


def _repeated(table: np.ndarray) -> np.ndarray:
    """Which rows of (n, columns) are equal to an earlier one. Rows must be ordered by their first column."""
    order = np.lexsort(table.T[::-1])  # stable, so that of equal rows the first comes first
    equal = np.zeros(len(table), bool)
    equal[order[1:]] = (table[order[1:]] == table[order[:-1]]).all(1)
    return equal
