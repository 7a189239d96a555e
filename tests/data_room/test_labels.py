"""Where labels lie, and what their rows mean."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yoloyard.data.formats.labels import Labels
from yoloyard.data.formats.layout import find_label, label_places
from yoloyard.data.formats.yolo_txt import parse_plain_yolo, parse_yolo

FILE = Path("labels/1.txt")
UNIT = (1, 1)  # an image of one pixel: pixels are fractions


def label_path(image: Path) -> Path:
    return find_label(image.stem, label_places(image.parent), {})


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("/d/images/train/1.jpg", "/d/labels/train/1.txt"),
        ("/d/train/images/1.jpg", "/d/train/labels/1.txt"),
        ("/images/d/images/1.2.jpeg", "/images/d/labels/1.2.txt"),
        ("/d/my_images/1.jpg", "/d/my_images/1.txt"),
        ("/d/photos/1.jpg", "/d/photos/1.txt"),
    ],
)
def test_labels_lie_beside_the_images_folder(image: str, labels: str) -> None:
    assert label_path(Path(image)) == Path(labels)


def test_labels_among_the_images_are_found_too(tmp_path: Path) -> None:
    image, beside, mirrored = tmp_path / "images/1.jpg", tmp_path / "images/1.txt", tmp_path / "labels/1.txt"
    beside.parent.mkdir()
    beside.touch()
    assert label_path(image) == beside
    mirrored.parent.mkdir()
    mirrored.touch()
    assert label_path(image) == mirrored


def test_boxes_and_polygons_may_be_mixed() -> None:
    content = b"\xef\xbb\xbf0 0.5 0.5 0.2 0.4\r\n\r\n1 0.1 0.2 0.3 0.1 0.25 0.6\n1.0 0.25 0.25 0.5 0.5"
    parsed = parse_yolo(FILE, content, 2, UNIT)
    assert parsed.labels.tolist() == [0, 1, 1]
    np.testing.assert_allclose(parsed.boxes, [[0.4, 0.3, 0.6, 0.7], [0.1, 0.1, 0.3, 0.6], [0, 0, 0.5, 0.5]])
    assert parsed.usable
    assert not parsed.problems


def test_no_rows_are_an_image_without_objects() -> None:
    parsed = parse_yolo(FILE, b" \n", 2, UNIT)
    assert parsed.usable
    assert parsed.boxes.shape == (0, 4)


def test_rows_that_say_the_same_count_once() -> None:
    parsed = parse_yolo(FILE, b"0 0.5 0.5 0.2 0.4\n0 0.50 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n", 2, UNIT)
    assert parsed.labels.tolist() == [0, 1]
    (problem,) = parsed.problems
    assert problem.kind == "label twice"
    assert str(problem) == "labels/1.txt:2: it says the same as line 1; row left out"


def test_boxes_end_at_the_image() -> None:
    parsed = parse_yolo(FILE, b"0 0.95 0.5 0.2 1.005\n0 -0.005 0.2 0.4 0.5 1.01 0.3\n", 1, UNIT)
    np.testing.assert_allclose(parsed.boxes, [[0.85, 0, 1, 1], [0, 0.2, 1, 0.5]])


@pytest.mark.parametrize("row", ["0 0.5 0.5 0 0.2", "0 0.1 0.2 0.1 0.4 0.1 0.6"])
def test_a_box_without_area_is_left_out_and_named(row: str) -> None:
    parsed = parse_yolo(FILE, f"0 0.5 0.5 0.2 0.2\n{row}\n".encode(), 1, UNIT)
    assert parsed.usable
    assert len(parsed.labels) == 1
    assert list(map(str, parsed.problems)) == ["labels/1.txt:2: the box has no area; row left out"]


@pytest.mark.parametrize(
    ("row", "reason", "kind"),
    [
        ("2 0.5 0.5 0.2 0.2", "class 2 is not one of 0 to 1", "class unknown"),
        ("-1 0.5 0.5 0.2 0.2", "class -1 is not one of 0 to 1", "class unknown"),
        ("0.5 0.5 0.5 0.2 0.2", "class 0.5 is not one of 0 to 1", "class unknown"),
        ("nan 0.5 0.5 0.2 0.2", "class nan is not one of 0 to 1", "class unknown"),
        ("dent 0.5 0.5 0.2 0.2", "'dent' is not a number", "label malformed"),
        ("0 0.5,0.5 0.2 0.2 1", "'0.5,0.5' is not a number", "label malformed"),
        ("0 0.5 0.5 0.2", "4 numbers; a box has 5", "label malformed"),
        ("0 0.5 0.5 0.2 0.2 9", "6 numbers; a box has 5", "label malformed"),
        ("0 320 240 50 50", "320 is outside 0..1", "label outside the image"),
        ("0 0.5 0.5 1.02 0.2", "1.02 is outside 0..1", "label outside the image"),
        ("0 0.5 nan 0.2 0.2", "nan is outside 0..1", "label outside the image"),
        ("0 0.5 inf 0.2 0.2", "inf is outside 0..1", "label outside the image"),
        ("0 0.5 0.5 -0.005 0.2", "the size -0.005 0.2 is negative", "box without area"),
    ],
)
def test_a_wrong_row_makes_the_image_unusable_and_is_named(row: str, reason: str, kind: str) -> None:
    parsed = parse_yolo(FILE, f"0 0.5 0.5 0.2 0.2\n\n{row}\n".encode(), 2, UNIT)
    assert not parsed.usable
    (problem,) = parsed.problems
    assert str(problem).startswith(f"labels/1.txt:3: {reason}")
    assert str(problem).endswith("; image skipped")
    assert problem.kind == kind


def test_labels_that_are_no_text_are_named() -> None:
    parsed = parse_yolo(FILE, b"\xb0\xa1 0.5 0.5 0.2 0.4", 2, UNIT)
    assert not parsed.usable
    assert "labels/1.txt: not a UTF-8 text file" in str(parsed.problems[0])


FRACTIONS = st.floats(-0.02, 1.02) | st.sampled_from(["0", "-0.0", "1", ".5", "5e-1", "1-2", "+0.25", "nan", "0_1"])
ROWS = st.lists(FRACTIONS.map(str) | st.just("0.25"), min_size=1, max_size=7).map(" ".join)
SOUND_ROWS = st.tuples(*[st.floats(0.1, 0.9).map(str)] * 4).map(" ".join)
LINES = st.builds("{}{}{}".format, st.sampled_from(["0 ", "1\t", "1e0 ", "2 ", "-1 ", "0.5 ", ""]), ROWS, st.just(" "))
SOUND_LINES = st.builds("{} {}".format, st.sampled_from([0, 1, "1.0"]), SOUND_ROWS)
FILES = st.lists(SOUND_LINES, max_size=4) | st.lists(SOUND_LINES | LINES | st.just(""), max_size=4)
ENDS = st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\v", "\u2028"])


@given(st.lists(st.builds(lambda lines, end: end.join(lines).encode(), FILES, ENDS), max_size=6))
def test_many_files_at_once_say_what_each_says_alone(files: list[bytes]) -> None:
    sizes = [(100 + number, 200 - number) for number in range(len(files))]
    together = parse_plain_yolo(files, 2, np.array(sizes).reshape(-1, 2))
    for content, size, own in zip(files, sizes, together, strict=True):
        alone = parse_yolo(Path("a.txt"), content, 2, size)
        if own is not None:
            assert (own.usable, own.problems) == (alone.usable, alone.problems) == (True, [])
            for name in ("boxes", "labels", "ignore"):
                mine, other = getattr(own, name), getattr(alone, name)
                assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
                np.testing.assert_array_equal(mine, other)


def test_sound_files_are_read_at_once_and_others_one_by_one() -> None:
    sound = [b"0 0.5 0.5 0.2 0.2\r\n1 0.5 0.5 1 1", b"", b"\n \n1 0.1 0.1 0.1 0.1 \n"]
    others = [b"0 0.5 0.5 0.2", b"0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n", b"0 0.5 0.5 0.2 0", b"2 0.5 0.5 0.2 0.2"]
    others += [b"0 0 0 1 0 1 1\n0 0.5 0.5 0.2 0.2", b"0 0.5 0.5 0.2 1.2", "\ufeff0 0.5 0.5 0.2 0.2".encode()]
    others += [b"0 0.5 0.5\r0.2 0.2", b"0 0.5 0.5 0.2 1-2", b"0 0.5 0.5 0.2 " + 10**5 * b"-"]
    found = parse_plain_yolo([*sound, *others], 2, np.array([(10, 10)] * 13))
    assert [type(own) for own in found] == [Labels] * 3 + [type(None)] * 10
    (first, second) = (own.labels.tolist() for own in found[::2][:2] if own is not None)
    assert (first, second) == ([0, 1], [1])
