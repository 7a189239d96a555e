"""Pascal VOC XML in place: what its objects mean, where the files lie, what is said of wrong ones."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from yoloyard.common.errors import UsageError
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.formats.voc_xml import parse_voc
from yoloyard.data.index.index import load_index

FILE = Path("Annotations/1.xml")
SIZE = (30, 40)  # height, width


def voc(*objects: str, size: tuple[int, int] = SIZE) -> bytes:
    head = f"<annotation>\n<size><width>{size[1]}</width><height>{size[0]}</height></size>\n"
    return (head + "\n".join(objects) + "\n</annotation>").encode()


def thing(name: str, *box: object, rest: str = "") -> str:
    tags = ("xmin", "ymin", "xmax", "ymax")
    corners = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, box, strict=True))
    return f"<object><name>{name}</name>{rest}<bndbox>{corners}</bndbox></object>"


def test_corners_are_edges_in_pixels_and_difficult_is_ignored() -> None:
    polygon = "<object><name>dent</name><polygon><x1>3</x1><y1>4</y1><x2>9</x2><y2>4</y2><x3>5</x3><y3>8</y3></polygon>"
    part = "<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part>"
    content = voc(
        thing("dent", 0, 0, 40, 30),
        thing(" a &lt; b &amp; c ", 1.5, 2.25, 40.3, 20, rest=part + "<difficult>1</difficult>"),
        polygon + "</object>",
    )
    parsed = parse_voc(FILE, content, ["a < b & c", "dent"], SIZE)
    assert parsed.boxes.tolist() == [[0, 0, 40, 30], [1.5, 2.25, 40, 20], [3, 4, 9, 8]]
    assert parsed.labels.tolist() == [1, 0, 1]
    assert parsed.ignore.tolist() == [False, True, False]
    assert parsed.usable
    assert not parsed.problems


def test_a_size_of_zero_says_nothing() -> None:
    assert parse_voc(FILE, voc(thing("dent", 1, 1, 5, 5), size=(0, 0)), ["dent"], SIZE).usable


def test_repeated_and_flat_objects_are_left_out_and_named() -> None:
    content = voc(thing("dent", 1, 1, 5, 5), thing("dent", 1, 1, 5, "5.0"), thing("dent", 1, 1, 1, 5))
    parsed = parse_voc(FILE, content, ["dent"], SIZE)
    assert parsed.usable
    assert len(parsed.labels) == 1
    assert [(problem.kind, str(problem)) for problem in parsed.problems] == [
        ("label twice", f"{FILE}:4: it says the same as line 3; object left out"),
        ("box without area", f"{FILE}:5: the box has no area; object left out"),
    ]


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (voc(thing("dent", 1, 1, 5, 5), thing("hole", 1, 1, 5, 5)), "class unknown", ":4: class 'hole' is not one of"),
        (voc(thing("dent", 1, 1, 5, 32)), "label outside the image", ":3: the box 1 1 5 32 is outside"),
        (voc(thing("dent", 5, 1, 1, 5)), "box without area", ":3: the size -4 4 is negative"),
        (voc(thing("dent", 5, 1, "nan", 5)), "label malformed", ":3: bndbox/xmax is 'nan', not a number"),
        (voc("<object><name>dent</name></object>"), "label malformed", ":3: the object has neither bndbox nor polygon"),
        (voc(size=(40, 30)), "image size differs", ": it says 30x40 pixels, the image has 40x30"),
        (voc()[:-3], "label malformed", ":4: not valid XML (unclosed token)"),
        (b"", "label malformed", ":1: not valid XML"),
        (b"<html><body>404</body></html>", "label malformed", ": its root is <html>, not <annotation>"),
        (b"<annotations><image/></annotations>", "label malformed", ": its root is <annotations>, not <annotation>"),
        (b"<?xml version='1.0' encoding='klingon'?><annotation/>", "label malformed", "unknown encoding"),
        (
            b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><annotation>&x;</annotation>",
            "label malformed",
            ": it has a document type definition",
        ),
    ],
)
def test_what_is_wrong_makes_the_image_unusable(content: bytes, kind: str, message: str) -> None:
    parsed = parse_voc(FILE, content, ["dent"], SIZE)
    assert not parsed.usable
    (problem,) = parsed.problems
    assert problem.kind == kind
    assert message in str(problem)
    assert str(problem).startswith(str(FILE))


def test_known_classes_are_listed_in_their_order() -> None:
    (problem,) = parse_voc(FILE, voc(thing("hole", 1, 1, 5, 5)), ["dent", "scratch", "dent", "crack"], SIZE).problems
    assert problem.what == "class 'hole' is not one of dent, scratch, crack"


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((*SIZE, 3), np.uint8))


@pytest.mark.parametrize(
    ("images", "labels", "entry"),
    [
        ("JPEGImages", "Annotations", "JPEGImages"),
        ("images/train", "annotations/train", "images/train"),
        ("images", "labels", "images"),
        ("images", "images", "images"),
        ("train", "xml", "{images: train, labels: xml}"),
        ("VOC/JPEGImages", "VOC/Annotations", "VOC/ImageSets/Main/train.txt"),
    ],
)
def test_files_are_found_where_they_usually_are(tmp_path: Path, images: str, labels: str, entry: str) -> None:
    image(tmp_path / images / "2007 1.png")
    write(tmp_path / labels / "2007 1.xml", voc(thing("dent", 1, 1, 5, 5)))
    write(tmp_path / "VOC/ImageSets/Main/train.txt", "2007 1\n")
    write(tmp_path / "data.yaml", f"train: {entry}\nnames: [dent]\n")
    index = load_index(read_data_yaml(tmp_path / "data.yaml"), "train")
    assert index.boxes.tolist() == [[1, 1, 5, 5]]
    assert list(index.file_names) == ["2007 1.png"]
    assert index.problems == ()


def test_lists_of_a_class_are_lists_and_their_dead_lines_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image(tmp_path / f"JPEGImages/{name}.png")
        write(tmp_path / f"Annotations/{name}.xml", voc(thing("dent", 1, 1, 5, 5)))
    write(tmp_path / "ImageSets/Main/dent_train.txt", "a  1\nb -1\nc 1\n")
    write(tmp_path / "data.yaml", "train: ImageSets/Main/dent_train.txt\nnames: [dent]\n")
    index = load_index(read_data_yaml(tmp_path / "data.yaml"), "train")
    assert [path.name for path in index.paths] == ["a.png", "b.png"]
    (problem,) = index.problems
    assert problem.where == f"{tmp_path}/ImageSets/Main/dent_train.txt:3"


def test_text_files_win_and_what_has_no_counterpart_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image(tmp_path / f"images/{name}.png")
    write(tmp_path / "labels/a.txt", "1 0.5 0.5 0.5 0.5\n")
    write(tmp_path / "labels/a.xml", voc(thing("dent", 1, 1, 5, 5)))
    write(tmp_path / "labels/lost.xml", voc())
    write(tmp_path / "labels/classes.txt", "dent\nscratch\n")
    write(tmp_path / "data.yaml", "train: images\nnames: [dent, scratch]\n")
    index = load_index(read_data_yaml(tmp_path / "data.yaml"), "train")
    assert index.labels.tolist() == [1]
    assert len(index) == 2
    assert [(problem.kind, problem.where) for problem in index.problems] == [
        ("label without image", f"{tmp_path}/labels/lost.xml"),
        ("image without label", f"{tmp_path}/images/b.png"),
    ]


def test_without_names_the_classes_of_the_first_files_are_said(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    write(tmp_path / "images/a.xml", voc(thing("dent", 1, 1, 5, 5), thing("big scratch", 1, 1, 5, 5)))
    write(tmp_path / "data.yaml", "train: images\n")
    with pytest.raises(UsageError, match=r"no names; .*mention dent, big scratch"):
        read_data_yaml(tmp_path / "data.yaml")
