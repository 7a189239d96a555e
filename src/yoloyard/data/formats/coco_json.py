"""COCO JSON: one file a split, images and annotations with ids, boxes [x, y, width, height] in pixels."""

import contextlib
import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yoloyard.common.errors import UserError
from yoloyard.data.audit.problems import Problem
from yoloyard.data.formats.labels import LabelError, LabelledImage, Labels, SplitLabels, clip, composed, is_set

_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')
_UNKNOWN_CLASS, _NO_CLASS = -1, -2  # in place of a label: the id of no class name, and no id at all

# Label, crowd, x, y, width, height (nan where there is no box), what the file calls the class.
_Annotation = tuple[int, bool, float, float, float, float, object]


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
    categories: Any = None
    found = list(_CATEGORIES.finditer(content))
    if len(found) == 1:  # no need to parse the rest, which may be hundreds of megabytes
        with contextlib.suppress(ValueError, RecursionError):  # the parser of the whole file says what is wrong
            categories, _ = json.JSONDecoder().raw_decode(content[found[0].end() :].decode("utf-8"))
    if categories is None:
        categories = _parse(path, content).get("categories")
    names = list(dict.fromkeys(_categories(path, categories).values()))
    if not names:
        raise UserError(f"{path} has no categories; list the classes as names in the data.yaml")
    return names


def parse_coco(path: Path, content: bytes, names: Sequence[str]) -> SplitLabels:
    """The images and annotations of a COCO JSON, categories mapped onto class `names` by their names.

    Images are ordered by their ids, numbers first. An annotation that is wrong makes the image unusable, and so does a
    size that isn't what the file says. Raises UserError if it isn't a COCO JSON.
    """
    tree, problems = _parse(path, content), list[Problem]()
    categories = _categories(path, tree.get("categories"))
    images = _images(path, tree["images"], problems)
    number = {composed(name): label for label, name in reversed(list(enumerate(names)))}
    label_of = {category: number.get(composed(name), _UNKNOWN_CLASS) for category, name in categories.items()}
    same = _by_meaning(categories)
    annotations: dict[int | str, list[tuple[str, _Annotation]]] = {image_id: [] for image_id in images}
    for image_id, place, own in _annotations(path, tree, images, problems):
        category = _id(own.get("category_id"))
        category = same.get(_plain(category), category) if category not in categories else category
        none = _UNKNOWN_CLASS if isinstance(category, int) else _NO_CLASS
        label = none if category is None else label_of.get(category, none)
        called = categories[category] if category in categories else own.get("category_id")
        annotations[image_id].append((place, (label, is_set(own.get("iscrowd")), *_box(own), called)))

    def labels(sizes: np.ndarray) -> list[Labels]:
        found = [Labels() for _ in images]
        for own, (image_id, image), size in zip(found, images.items(), sizes.tolist(), strict=True):
            said = [_side(image, "height"), _side(image, "width")]
            if all(said) and all(size) and said != size:
                what = f"it says {said[1]:g}x{said[0]:g} pixels, {image['file_name']} has {size[1]}x{size[0]}"
                own.refuse("image size differs", f"{path} image id {image_id}", what)
            elif all(size):
                own.take_rows(path, annotations[image_id], functools.partial(_clipped, size=size), "annotation")
        return found

    ids = {label: category for category, label in reversed(label_of.items()) if isinstance(category, int)}
    free = max((category for category in label_of if isinstance(category, int)), default=-1) + 1
    return SplitLabels(
        file_names=[image["file_name"] for image in images.values()],
        image_ids=list(images),
        places=[f"{path} image id {image_id}" for image_id in images],
        category_ids=[ids.get(label, free + label) for label in range(len(names))],
        problems=problems,
        images_left_out=len(tree["images"]) - len(images),
        labels=labels,
    )


def format_coco(images: Iterable[LabelledImage], classes: Sequence[tuple[int, str]]) -> str:
    """The COCO JSON of a split; `classes` are the ids and names of its categories, by labels."""
    rows, annotations = [], list[dict[str, Any]]()
    for image in images:
        height, width = image.size
        rows.append({"id": image.image_id, "file_name": image.name, "width": width, "height": height})
        boxes = zip(image.boxes.astype(float).tolist(), image.labels, image.ignore, strict=True)
        for (x1, y1, x2, y2), label, ignored in boxes:
            own = {"id": len(annotations) + 1, "image_id": image.image_id, "category_id": classes[label][0]}
            own |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(ignored)}
            annotations.append(own)
    categories = [{"id": number, "name": name} for number, name in classes]
    return json.dumps({"images": rows, "annotations": annotations, "categories": categories})


def _annotations(
    path: Path, tree: dict[str, Any], images: dict[int | str, Any], problems: list[Problem]
) -> Iterator[tuple[int | str, str, dict[str, Any]]]:
    """Image, name for messages and content of the annotations; those of no image go to the `problems`."""
    same = _by_meaning(images)
    left_out = {_id(image.get("id")) for image in tree["images"] if isinstance(image, dict)} - images.keys()
    annotations = tree.get("annotations", [])
    if not isinstance(annotations, list):
        raise UserError(f"{path}: annotations is not a list")
    for position, annotation in enumerate(annotations):
        own = annotation if isinstance(annotation, dict) else {}
        place = f"annotation id {own['id']}" if "id" in own else f"annotations[{position}]"
        image_id = _id(own.get("image_id"))
        image_id = same.get(_plain(image_id), image_id) if image_id not in images else image_id
        if image_id is not None and image_id in images:
            yield image_id, place, own
        elif image_id is None or image_id not in left_out:  # images that are left out are named already
            if image_id is not None:
                what = f"image id {image_id} is not among its images"
            elif "image_id" in own:
                what = f"its image_id {own['image_id']!r} is neither a whole number nor a text"
            else:
                what = "it names no image_id"
            problems.append(Problem("label malformed", f"{path} {place}", what, "annotation left out"))


def _clipped(annotation: _Annotation, size: tuple[int, int]) -> tuple[float, ...]:
    """Class, ignore, clipped xyxy and the box as it is written, which tells rows apart."""
    label, ignore, x, y, width, height, called = annotation
    if label == _NO_CLASS:
        what = f"its category_id {called!r} is not a whole number or an id of its categories"
        raise LabelError("label malformed", what)
    if label == _UNKNOWN_CLASS:
        raise LabelError("class unknown", f"category {called!r} is not one of the classes")
    if not all(map(math.isfinite, (x, y, width, height))):
        raise LabelError("label malformed", "it has neither a bbox of 4 numbers nor a polygon")
    corners = clip((x, y, x + width, y + height), size, lambda: f"the bbox {x:g} {y:g} {width:g} {height:g}")
    return label, ignore, *corners, x, y, width, height


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
    """An id: a whole number of at most 64 bits where it can be read as one, else a text, or None."""
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


def _box(annotation: dict[str, Any]) -> tuple[float, float, float, float]:
    """x, y, width, height of an annotation, from its polygons if it has no bbox; nan if there is neither."""
    box = annotation.get("bbox")
    try:
        if isinstance(box, list) and len(box) == 4:
            return float(box[0]), float(box[1]), float(box[2]), float(box[3])
        polygons = annotation.get("segmentation")
        if not box and isinstance(polygons, list) and polygons:
            x = [float(value) for polygon in polygons for value in polygon[0::2]]
            y = [float(value) for polygon in polygons for value in polygon[1::2]]
            if len(x) == len(y) and np.isfinite(x + y).all():
                return min(x), min(y), max(x) - min(x), max(y) - min(y)
    except (TypeError, ValueError, OverflowError):
        pass  # what is no number is no box either
    return math.nan, math.nan, math.nan, math.nan


def _order(item: tuple[int | str, Any]) -> tuple[bool, int | str]:
    return isinstance(item[0], str), item[0]
