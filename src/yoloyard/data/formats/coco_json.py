"""COCO JSON: one file a split, images and annotations with ids, boxes [x, y, width, height] in pixels.

Shapes: N images of the file, n annotations. Coordinates are kept in float64 and go through no fractions.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from yoloyard.common.errors import UserError
from yoloyard.data.audit.problems import Problem
from yoloyard.data.formats.labels import LabelledImage, Labels, SplitLabels, clip, composed, is_set, outside

_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')
_UNKNOWN_CLASS, _NO_CLASS = -1, -2  # in place of a label: the id of no class name, and no id at all


@dataclass(frozen=True)
class _Annotations:
    """Those of a file, ordered by image and then as in the file."""

    places: list[str]  # n, how messages name an annotation
    rows: np.ndarray  # int64 (n,) positions of the images
    labels: np.ndarray  # int64 (n,); negative: not one of the class names
    categories: list[object]  # n, how the file calls the class; its id where that is not one of the categories
    boxes_xywh: np.ndarray  # float64 (n, 4) pixels; nan where there is no box
    ignore: np.ndarray  # bool (n,) crowds


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


def parse_coco(path: Path, content: bytes, names: Sequence[str]) -> SplitLabels:
    """The images and annotations of a COCO JSON, categories mapped onto class `names` by their names.

    Images are ordered by their ids, numbers first. Raises UserError if it isn't a COCO JSON.
    """
    tree, problems = _parse(path, content), list[Problem]()
    categories = _categories(path, tree.get("categories"))
    images = _images(path, tree.get("images"), problems)
    number = {composed(name): label for label, name in reversed(list(enumerate(names)))}
    label_of = {category: number.get(composed(name), _UNKNOWN_CLASS) for category, name in categories.items()}
    annotations = _annotations(path, tree, images, categories, label_of, problems)
    file_names = [image["file_name"] for image in images.values()]
    places = [f"{path} image id {image_id}" for image_id in images]
    said_sizes = np.array([(_side(each, "height"), _side(each, "width")) for each in images.values()]).reshape(-1, 2)
    return SplitLabels(
        file_names=file_names,
        image_ids=list(images),
        places=places,
        category_ids=_category_ids(label_of, len(names)),
        problems=problems,
        images_left_out=len(tree["images"]) - len(images),
        labels=functools.partial(_labels, annotations, file_names, places, said_sizes),
    )


def format_coco(images: Iterable[LabelledImage], classes: Sequence[tuple[int, str]]) -> str:
    """The COCO JSON of a split; `classes` are the ids and names of its categories, by labels."""
    rows: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in images:
        height, width = image.size
        rows.append({"id": image.image_id, "file_name": image.name, "width": width, "height": height})
        for box, label, ignored in zip(image.boxes.astype(float).tolist(), image.labels, image.ignore, strict=True):
            x1, y1, x2, y2 = box
            own = {"id": len(annotations) + 1, "image_id": image.image_id, "category_id": classes[label][0]}
            own |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(ignored)}
            annotations.append(own)
    categories = [{"id": number, "name": name} for number, name in classes]
    return json.dumps({"images": rows, "annotations": annotations, "categories": categories})


def _annotations(
    path: Path,
    tree: dict[str, Any],
    images: dict[int | str, Any],
    categories: dict[int | str, str],
    label_of: dict[int | str, int],
    problems: list[Problem],
) -> _Annotations:
    """The annotations of the `images`; those that belong to no image go to the `problems`."""
    rows = {image_id: row for row, image_id in enumerate(images)}
    same_image, same_category = _by_meaning(images), _by_meaning(categories)
    left_out = {_id(image.get("id")) for image in tree["images"] if isinstance(image, dict)} - rows.keys()
    annotations = tree.get("annotations", [])
    if not isinstance(annotations, list):
        raise UserError(f"{path}: annotations is not a list")
    found: list[tuple[int, str, int, object, dict[str, Any]]] = []
    for position, annotation in enumerate(annotations):
        own = annotation if isinstance(annotation, dict) else {}
        place = f"{path} annotation id {own['id']}" if "id" in own else f"{path} annotations[{position}]"
        image_id, category = _id(own.get("image_id")), _id(own.get("category_id"))
        image_id = same_image.get(_plain(image_id), image_id) if image_id not in rows else image_id
        category = same_category.get(_plain(category), category) if category not in categories else category
        if image_id in rows:
            none = _UNKNOWN_CLASS if isinstance(category, int) else _NO_CLASS
            label = none if category is None else label_of.get(category, none)
            called = categories[category] if category in categories else own.get("category_id")
            found.append((rows[image_id], place, label, called, own))
        elif image_id is None or image_id not in left_out:  # images that are left out are named already
            if image_id is not None:
                what = f"image id {image_id} is not among its images"
            elif "image_id" in own:
                what = f"its image_id {own['image_id']!r} is neither a whole number nor a text"
            else:
                what = "it names no image_id"
            problems.append(Problem("label malformed", place, what, "annotation left out"))
    found.sort(key=itemgetter(0))  # stable
    return _Annotations(
        places=[place for _, place, *_ in found],
        rows=np.array([row for row, *_ in found], np.int64),
        labels=np.array([label for _, _, label, *_ in found], np.int64),
        categories=[called for *_, called, _ in found],
        boxes_xywh=np.array([_box(own) for *_, own in found], np.float64).reshape(-1, 4),
        ignore=np.array([is_set(own.get("iscrowd")) for *_, own in found], bool),
    )


def _labels(
    annotations: _Annotations, file_names: list[str], places: list[str], said_sizes: np.ndarray, sizes: np.ndarray
) -> list[Labels]:
    """The labels of each image, clipped to images of `sizes` int (N, 2) height, width; nothing where that is 0.

    Annotations of an image that say the same are kept once, those whose box has no area are left out. One that is
    wrong makes the image unusable, and so does a size that isn't what the file says (`said_sizes`, 0: nothing).
    """
    rows, labels, ignore, boxes_xywh = annotations.rows, annotations.labels, annotations.ignore, annotations.boxes_xywh
    size = sizes[rows].astype(np.float64)
    boxes = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
    missing: np.ndarray = np.logical_not(np.isfinite(boxes_xywh).all(1))
    negative: np.ndarray = boxes_xywh[:, 2:].min(axis=1) < 0
    wrong: np.ndarray = np.logical_or.reduce((labels < 0, missing, negative, outside(boxes, size)))
    clipped = clip(np.nan_to_num(boxes), size)
    flat: np.ndarray = ~wrong & (clipped[:, 2:] <= clipped[:, :2]).any(1)
    twice: np.ndarray = ~wrong & ~flat & _repeated(np.column_stack([rows, labels, ignore, boxes_xywh]))
    good: np.ndarray = ~(wrong | flat | twice)

    counts = np.bincount(rows, minlength=len(sizes))
    ends = np.cumsum(counts)
    result = []
    for start, end in zip(ends - counts, ends, strict=True):
        mine = slice(start, end)
        if not good[mine].all():
            mine = np.flatnonzero(good[mine]) + start
        result.append(Labels(clipped[mine], labels[mine], ignore[mine]))
    differs: np.ndarray = (said_sizes > 0).all(1) & (sizes > 0).all(1) & (said_sizes != sizes).any(1)
    for row in np.flatnonzero(differs).tolist():
        (height, width), (true_height, true_width) = said_sizes[row], sizes[row]
        what = f"it says {width:g}x{height:g} pixels, {file_names[row]} has {true_width}x{true_height}"
        result[row].refuse("image size differs", places[row], what)
    known: np.ndarray = (sizes > 0).all(1) & ~differs
    for position in np.flatnonzero(~good & known[rows]).tolist():
        own, place = result[rows[position]], annotations.places[position]
        x, y, width, height = boxes_xywh[position]
        called = annotations.categories[position]
        if twice[position]:
            what = "the image has an annotation that says the same"
            own.problems.append(Problem("label twice", place, what, "annotation left out"))
        elif flat[position]:
            own.problems.append(Problem("box without area", place, "the box has no area", "annotation left out"))
        elif labels[position] == _NO_CLASS:
            what = f"its category_id {called!r} is not a whole number or an id of its categories"
            own.refuse("label malformed", place, what)
        elif labels[position] == _UNKNOWN_CLASS:
            own.refuse("class unknown", place, f"category {called!r} is not one of the classes")
        elif missing[position]:
            own.refuse("label malformed", place, "it has neither a bbox of 4 numbers nor a polygon")
        elif negative[position]:
            own.refuse("box without area", place, f"the size {width:g} {height:g} is negative")
        else:
            true_height, true_width = sizes[rows[position]]
            what = f"the bbox {x:g} {y:g} {width:g} {height:g} is outside the image of {true_width}x{true_height}"
            own.refuse("label outside the image", place, what)
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
        if number is None:
            what = f"its id {own['id']!r} is neither a whole number nor a text" if "id" in own else "it has no id"
        elif not isinstance(name, str) or not name or "\0" in name:
            what = "it has no file_name"
        elif number in found:
            what = "another image has this id"
        elif name in by_name:
            what = f"image id {by_name[name]} has the same file_name {name}"
        else:
            found[number], by_name[name] = own, number
            continue
        place = f"{path} images[{position}]" if number is None else f"{path} image id {number}"
        problems.append(Problem("label malformed", place, what, "image skipped"))
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
    """An id, a whole number of at most 64 bits where it can be read as one, else a text; None for anything else."""
    if isinstance(value, float):  # as tables are exported
        value = int(value) if value.is_integer() and abs(value) < 2**63 else None
    elif isinstance(value, str) and re.fullmatch(r"0|-?[1-9][0-9]{0,18}", value):  # 007 is a text of its own
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else str(value) or None


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
