"""YOLO text files: one an image, a row an object, in fractions of the image's width and height."""

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from yoloyard.data.audit.problems import Problem
from yoloyard.data.formats.labels import TOLERANCE, LabelError, LabelledImage, Labels, decoded

WITH_SCORE, WITH_TRACK = 6, 7  # words of a row of predictions: class cx cy w h score, and the number of a track
POSE_ROWS = 3  # so many rows must have their points in a box, and this share of all, to be taken for keypoints
POSE_SHARE = 0.9
PARSED_AT_ONCE_BYTES = 2**20  # their words take about twenty times as much meanwhile
PLAIN_BYTES = b"0123456789+-.eE \t\r\n"


def parse_plain_yolo(files: Sequence[bytes], num_classes: int, sizes: np.ndarray) -> list[Labels | None]:
    """What `parse_yolo` gives for each of N files, all at once; None for those that must be looked at row by row.

    These are the files that have anything but rows `class cx cy w h` without a mistake. `sizes` (N, 2) height, width.
    """
    values: dict[int, list[float]] = {}  # of the files that have rows of five numbers alone
    for number, content in enumerate(files):
        if content.translate(None, PLAIN_BYTES):
            continue
        words = list(map(bytes.split, content.splitlines()))
        if {0, 5}.issuperset(map(len, words)):
            with contextlib.suppress(ValueError):  # such as 1-2
                values[number] = list(map(float, itertools.chain.from_iterable(words)))
    rows = np.fromiter(itertools.chain.from_iterable(values.values()), np.float64).reshape(-1, 5)
    counts = [len(each) // 5 for each in values.values()]
    file_of = np.repeat(list(values), counts)
    labels, centres, sides = rows[:, 0], rows[:, 1:3], rows[:, 3:]
    corners = np.clip(np.concatenate((centres - sides / 2, centres + sides / 2), axis=1), 0, 1)
    is_sound = (labels == np.floor(labels)) & (labels >= 0) & (labels < num_classes) & (sides >= 0).all(axis=1)
    is_sound &= ((rows[:, 1:] >= -TOLERANCE) & (rows[:, 1:] <= 1 + TOLERANCE)).all(axis=1)
    is_sound &= (corners[:, :2] < corners[:, 2:]).all(axis=1)
    boxes_of_files = np.column_stack((file_of, labels, corners))
    _, same, times = np.unique(boxes_of_files, axis=0, return_inverse=True, return_counts=True)
    is_sound &= times[same.reshape(-1)] == 1
    doubtful = set(file_of[~is_sound].tolist())
    result: list[Labels | None] = [None] * len(files)
    ends, scale = np.cumsum(counts, dtype=int).tolist(), np.tile(sizes[:, ::-1], 2)
    for number, count, end in zip(values, counts, ends, strict=True):
        if number not in doubtful:
            here = slice(end - count, end)
            result[number] = Labels(corners[here] * scale[number], labels[here].astype(np.int64), np.zeros(count, bool))
    return result


def parse_yolo(path: Path, content: bytes, num_classes: int, size: tuple[int, int], keypoint_values: int = 0) -> Labels:
    """Boxes of a text file: rows `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...` (a polygon), as fractions.

    Both kinds may be mixed; a polygon becomes its bounds. With `keypoint_values` there are no polygons: a box is
    followed by so many numbers, which are left out. So are, with a warning, a sixth number, the score of a prediction,
    and a seventh, the number of a track. Boxes are clipped to the image of `size` (height, width). A row that is wrong
    makes the image unusable.
    """
    result = Labels()
    try:
        lines = decoded(content).splitlines()
    except UnicodeDecodeError as error:
        result.refuse("label unreadable", str(path), f"not a UTF-8 text file (byte {error.start})")
        return result
    rows = [(number, words) for number, line in enumerate(lines, start=1) if (words := line.split())]
    result.take_rows(path, rows, lambda words: _parse_row(words, num_classes, keypoint_values), "row")
    scored = (n for n, words in rows if len(words) == WITH_SCORE or (not keypoint_values and _is_tracked(words)))
    if result.usable and (first := next(scored, None)):
        what = "its sixth number is a score: somebody's predictions, which count as labels here"
        result.problems.append(Problem("label with score", f"{path}:{first}", what))
    height, width = size
    result.boxes = result.boxes * [width, height, width, height]
    return result


def parse_yolo_files(
    files: Sequence[tuple[Path, bytes]], names: Sequence[str], sizes: Sequence[tuple[int, int]], keypoint_values: int
) -> list[Labels]:
    """The labels of N files, each given with its content, for images of `sizes` (height, width); see `parse_yolo`."""
    labels: list[Labels] = []
    shares = np.cumsum([len(content) for _, content in files]) // PARSED_AT_ONCE_BYTES
    for _, group in itertools.groupby(zip(shares, files, sizes, strict=True), key=lambda each: each[0]):
        _, own_files, own_sizes = zip(*group, strict=True)
        plain = parse_plain_yolo([content for _, content in own_files], len(names), np.array(own_sizes))
        for (path, content), size, found in zip(own_files, own_sizes, plain, strict=True):
            labels.append(found or parse_yolo(path, content, len(names), size, keypoint_values))
    return labels


def pose_problem(files: Iterable[tuple[Path, bytes]]) -> list[Problem]:
    """A warning where the rows of label files, each given with its content, seem to be boxes with keypoints.

    All rows longer than a box and a score have one length, and nearly all their points in the box of four numbers.
    """
    texts = [(path, content) for path, content in files if path.suffix.lower() == ".txt"]
    # Files of boxes alone are told without a look at each row.
    others = (each for _, each in texts if len(each.split()) != 5 * (each.count(b"\n") + (each[-1:] not in b"\n")))
    lengths, inside = [], 0
    for words in (words for each in others for words in map(bytes.split, each.splitlines()) if len(words) > WITH_SCORE):
        lengths.append(len(words))
        try:
            inside += _has_points_inside(np.array(list(map(float, words)))[1:])
        except ValueError:
            return []
        if lengths[0] != lengths[-1]:
            return []
    if len(lengths) < POSE_ROWS or inside < POSE_SHARE * len(lengths):
        return []
    length = lengths[0]
    shape = [(length - 5) // 3, 3] if length % 2 == 0 else [(length - 5) // 2, 2]
    what = (
        f"the rows of {length} numbers seem to be boxes with keypoints: their points lie in the box that the first "
        f"four say. They count as polygons; if they are keypoints, write kpt_shape: {shape} in the data.yaml"
    )
    return [Problem("label with keypoints", str(texts[0][0].parent), what)]


def _has_points_inside(row: np.ndarray) -> bool:
    """Whether the box cxcywh of a row is in the image, and holds all points x, y (, visibility 0 to 2) but 0, 0."""
    box, others = row[:4], row[4:]
    if not _is_in_image(box):
        return False
    for points in (others.reshape(-1, each) for each in (2, 3) if len(others) % each == 0):
        seen = points[points[:, :2].any(1), :2]
        is_inside = np.all(np.abs(seen - box[:2]) <= box[2:] / 2 + TOLERANCE)
        if is_inside and len(seen) and np.isin(points[:, 2:], (0, 1, 2)).all():
            return True
    return False


def format_yolo(image: LabelledImage, names: Sequence[str]) -> str:
    """The rows of a text file, without the boxes that are to be ignored, which it has no word for."""
    height, width = image.size
    corners = image.boxes[~image.ignore].astype(np.float64) / [width, height, width, height]
    rows = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    pairs = zip(image.labels[~image.ignore].tolist(), rows.tolist(), strict=True)
    return "".join(f"{label} {' '.join(f'{value:.9g}' for value in row)}\n" for label, row in pairs)


def _parse_row(words: list[str], num_classes: int, keypoint_values: int) -> tuple[float, ...]:
    """Class, 0 (not to be ignored) and clipped xyxy of a row."""
    numbers: list[float] = []
    for word in words:
        try:
            numbers.append(float(word))
        except ValueError:
            raise LabelError("label malformed", f"{word!r} is not a number") from None
    label, values = numbers[0], numbers[1:]
    if not (label.is_integer() and 0 <= label < num_classes):
        raise LabelError("class unknown", f"class {words[0]} is not one of 0 to {num_classes - 1}")
    is_scored = (len(words) == WITH_SCORE and 0 <= values[-1] <= 1) or (_is_tracked(words) and 0 <= values[4] <= 1)
    if is_scored or len(values) == 4 + keypoint_values:
        values = values[:4]
    elif keypoint_values and len(values) != 4:
        said = f"with the data.yaml's kpt_shape a row has {5 + keypoint_values}, or 5 (a box alone)"
        raise LabelError("label malformed", f"{len(words)} numbers; {said}")
    elif len(values) != 4 and (len(values) < 6 or len(values) % 2):
        what = f"{len(words)} numbers; a box has 5 (class cx cy w h), a polygon 7, 9, 11 ... (keypoints need kpt_shape)"
        raise LabelError("label malformed", what)
    if len(values) == 4 and min(values[2:]) < 0:
        raise LabelError("box without area", f"the size {words[3]} {words[4]} is negative")
    for word, value in zip(words[1 : 1 + len(values)], values, strict=True):
        if not -TOLERANCE <= value <= 1 + TOLERANCE:  # also false for nan
            what = f"{word} is outside 0..1; labels are fractions of the image's width and height"
            raise LabelError("label outside the image", what)
    if len(values) == 4:
        centre_x, centre_y, width, height = values
        corners = (centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
    else:
        corners = (min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2]))
    left, top, right, bottom = (min(max(value, 0.0), 1.0) for value in corners)
    return label, 0.0, left, top, right, bottom


def _is_tracked(words: list[str]) -> bool:
    """Whether a row is `class cx cy w h score track`: its last is a whole number, or 1 after a box in the image."""
    if len(words) != WITH_TRACK or not words[-1].isdecimal() or words[-1].strip("0") == "":
        return False
    # A triangle may end in 1, too; its first two points are hardly such a box.
    return words[-1] != "1" or _is_in_image(np.array(words[1:5], np.float64))


def _is_in_image(box: np.ndarray) -> bool:
    sides = box[2:]
    low, high = box[:2] - sides / 2, box[:2] + sides / 2
    return bool(np.all((sides > 0) & (low >= -TOLERANCE) & (high <= 1 + TOLERANCE)))
