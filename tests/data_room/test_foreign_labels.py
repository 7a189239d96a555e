"""Labels and names of other programs: keypoints, scores, crowds, ids that are texts, names that YAML changes."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yoloyard.commands.data_check import check_data, class_rows
from yoloyard.common.errors import UsageError, UserError
from yoloyard.data.formats.convert import convert
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.formats.voc_xml import parse_voc
from yoloyard.data.formats.yolo_txt import parse_yolo
from yoloyard.data.index.index import Index, load_index, read_split, require_boxes
from yoloyard.data.index.selection import select

FILE = Path("labels/1.txt")
UNIT = (1, 1)  # an image of one pixel: pixels are fractions
TWO_POINTS = "0.3 0.3 0.7 0.3"


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (30, 40, 3)).astype(np.uint8))


def names_of(folder: Path, names: str) -> tuple[str, ...]:
    return read_data_yaml(write(folder / "data.yaml", f"train: images\nnames: {names}\n")).names


# Keypoints


@pytest.mark.parametrize(
    ("values", "row"),
    [
        (4, f"0 0.5 0.5 0.2 0.4 {TWO_POINTS}"),
        (6, "0 0.5 0.5 0.2 0.4 0.3 0.3 2 0.7 0.3 1"),
        (6, "0 0.5 0.5 0.2 0.4 0 0 0 -1 7 nan"),  # points that aren't seen have all kinds of places
        (51, f"0 0.5 0.5 0.2 0.4 {'0.1 0.2 2 ' * 17}"),
        (2, "0 0.5 0.5 0.2 0.4 0.5 0.5"),
        (4, "0 0.5 0.5 0.2 0.4"),  # a box alone
    ],
)
def test_with_keypoints_the_box_is_the_first_four_numbers(values: int, row: str) -> None:
    parsed = parse_yolo(FILE, row.encode(), 1, UNIT, values)
    assert parsed.problems == []
    np.testing.assert_allclose(parsed.boxes, [[0.4, 0.3, 0.6, 0.7]])


@pytest.mark.parametrize(
    "row", [f"0 0.5 0.5 0.2 0.4 {TWO_POINTS} 0.5 0.5", "0 0.5 0.5 0.2 0.4 0.3 0.3", "0 0.5 0.5 0.2"]
)
def test_a_row_of_another_number_of_keypoints_is_refused(row: str) -> None:
    parsed = parse_yolo(FILE, row.encode(), 1, UNIT, 4)
    assert not parsed.usable
    assert "with the data.yaml's kpt_shape a row has 9, or 5 (a box alone)" in str(parsed.problems[0])


def test_keypoints_that_are_no_numbers_are_refused() -> None:
    assert not parse_yolo(FILE, b"0 0.5 0.5 0.2 0.4 0.3 0.3 x 0.3", 1, UNIT, 4).usable


def test_the_shape_of_keypoints_comes_from_the_data_yaml_and_makes_another_index(
    tmp_path: Path, said: list[str]
) -> None:
    image(tmp_path / "images/a.png")
    write(tmp_path / "labels/a.txt", f"0 0.5 0.5 0.5 0.5 {TWO_POINTS}\n")
    data = write(tmp_path / "data.yaml", "train: images\nnames: [x]\n")
    assert load_index(read_data_yaml(data), "train").boxes.tolist() != [[10, 7.5, 30, 22.5]]  # a polygon
    write(data, "train: images\nnames: [x]\nkpt_shape: [2, 2]\nflip_idx: [1, 0]\n")
    assert load_index(read_data_yaml(data), "train").boxes.tolist() == [[10, 7.5, 30, 22.5]]
    assert said == [f"{data}: kpt_shape says that rows have keypoints: they are left out, the boxes are used"]


@pytest.mark.parametrize("shape", ["17", "[17]", "[17, 4]", "[17, '3']", "x", "[1.5, 2]", "[-2, 2]", "[true, 2]"])
def test_a_shape_of_keypoints_that_means_nothing_is_refused(tmp_path: Path, shape: str) -> None:
    data = write(tmp_path / "data.yaml", f"train: images\nnames: [x]\nkpt_shape: {shape}\n")
    with pytest.raises(UsageError, match=r"kpt_shape must be \[keypoints, 2 or 3\]"):
        read_data_yaml(data)


@pytest.mark.parametrize(
    "key",
    [
        *("flip_idx: [1, 0]", "kpt_names: {0: [nose]}", "task: pose", "task: keypoint", "nkpt: 4", "nkpts: '17'"),
        *("kpt_label: true", "keypoints: [a, b]", "num_keypoints: 4", "kpt_num: 4", "KeyPoint_names: [a]", "kpts: 2"),
        *("skeleton: [[0, 1]]", "flip_index: [1, 0]", "flip_indices: [1, 0]"),
    ],
)
def test_keypoints_without_their_number_are_refused(tmp_path: Path, key: str) -> None:
    data = write(tmp_path / "data.yaml", f"train: images\nnames: [x]\n{key}\n")
    with pytest.raises(UsageError, match=r"keypoints \(pose\) without kpt_shape"):
        read_data_yaml(data)


# Rows of predictions


def test_the_score_of_a_predicted_row_is_left_out_and_said() -> None:
    parsed = parse_yolo(FILE, b"0 0.5 0.5 0.2 0.4 0.913500\n1 0.5 0.5 0.2 0.4 0.25\n", 2, UNIT)
    np.testing.assert_allclose(parsed.boxes, [[0.4, 0.3, 0.6, 0.7]] * 2)
    (problem,) = parsed.problems
    assert (problem.kind, problem.where, problem.is_error) == ("label with score", "labels/1.txt:1", False)


@pytest.mark.parametrize("track", ["1", "7", "412"])
def test_the_number_of_a_track_after_the_score_makes_no_triangle(track: str) -> None:
    parsed = parse_yolo(FILE, f"0 0.5 0.5 0.2 0.4 0.9 {track}\n".encode(), 1, UNIT)
    np.testing.assert_allclose(parsed.boxes, [[0.4, 0.3, 0.6, 0.7]])
    assert [problem.kind for problem in parsed.problems] == ["label with score"]
    triangle = parse_yolo(FILE, b"0 0.5 0.5 0.2 0.4 0.9 1.0\n0 0.1 0.2 0.3 0.3 0.2 0.4\n", 1, UNIT)
    np.testing.assert_allclose(triangle.boxes, [[0.2, 0.4, 0.9, 1], [0.1, 0.2, 0.3, 0.4]])
    assert not parse_yolo(FILE, b"0 0.5 0.5 0.2 0.4 91.3 12\n", 1, UNIT).usable
    assert not parse_yolo(FILE, b"0 x 0.5 0.2 0.4 0.9 1\n", 1, UNIT).usable
    assert parse_yolo(FILE, b"0 0.5 0.5 0.2 0.4 0.9 1\n", 1, UNIT, 2).problems == []  # a keypoint
    np.testing.assert_allclose(parse_yolo(FILE, b"0 0 0 0.5 0 0.5 1\n", 1, UNIT).boxes, [[0, 0, 0.5, 1]])


POSE = "0 {x} 0.5 0.2 0.4 {x} 0.4 {x} 0.6"


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([POSE.format(x=x) for x in (0.3, 0.4, 0.5, 0.6)], 9),
        (["0 0.5 0.5 0.5 0.5 0.3 0.3 1 0 0 0", *["0 0.5 0.5 0.5 0.5 0.3 0.3 1 0.4 0.7 1"] * 2], 11),
        (["0 0.5 0.5 0.5 0.5", *[POSE.format(x=0.7)] * 3], 9),  # boxes alone among them
        ([POSE.format(x=0.3)] * 2, 0),  # too few to tell
        (["0 0.1 0.1 0.3 0.1 0.3 0.3 0.1 0.3", "0 0.6 0.6 0.8 0.6 0.8 0.8 0.6 0.8"] * 3, 0),  # rotated boxes
        ([POSE.format(x=0.3), POSE.format(x=0.4), POSE.format(x=0.5) + " 0.5 0.5"], 0),  # polygons of any length
        (["0 0.5 0.5 0.5 0.5"] * 5, 0),
    ],
)
def test_keypoints_that_nothing_speaks_of_are_told_by_their_place(tmp_path: Path, rows: list[str], length: int) -> None:
    for number, row in enumerate(rows):
        image(tmp_path / f"images/{number}.png", number)
        write(tmp_path / f"labels/{number}.txt", row)
    index = load_index(read_data_yaml(write(tmp_path / "data.yaml", "train: images\nnames: [x]\n")), "train")
    what = [problem.what for problem in index.problems if problem.kind == "label with keypoints"]
    assert len(what) == (length > 0)
    assert all(f"the rows of {length} numbers seem to be boxes with keypoints" in each for each in what)


# Names


@pytest.mark.parametrize(
    "name",
    [
        "0123",
        "1:30",
        "3.10",
        "on",
        "no",
        "Yes",
        "0x10",
        "0o17",
        "1e3",
        "12_000",
        "2024-01-01",
        "null",
        ".5",
        "007",
        "+1",
        "1.0",
        ".inf",
        "~",
        "TRUE",
        "08",
        "2024-01-01T10:00:00",
        "=",
        "2024-13-45",
    ],
)
def test_names_stay_as_they_are_written(tmp_path: Path, name: str) -> None:
    assert names_of(tmp_path, f"[a, {name}]") == ("a", name)
    assert names_of(tmp_path, f"\n  - a\n  - {name}  # a comment") == ("a", name)
    assert names_of(tmp_path, f"{{0: a, 1: {name}}}") == ("a", name)
    assert names_of(tmp_path, f"\n  1: {name}\n  0: a") == ("a", name)


def test_names_survive_being_written(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    write(tmp_path / "labels/a.txt", "1 0.5 0.5 0.5 0.5\n")
    names = ("0123", "1:30", "no", "~", "3.10")
    data = write(tmp_path / "data.yaml", f"train: images\nnames: [{', '.join(names)}]\n")
    for to in ("voc", "coco", "yolo"):
        data = convert(read_data_yaml(data), tmp_path / to, to)
        spec = read_data_yaml(data)
        assert spec.names == names
        assert load_index(spec, "train").labels.tolist() == [1]


@pytest.mark.parametrize("names", ["{00: a, 01: b, 02: c}", "{2: c, '0': a, 01: b}", "\n  0: a\n  1: b\n  2: c"])
def test_numbers_of_classes_may_have_zeros_in_front(tmp_path: Path, names: str) -> None:
    assert names_of(tmp_path, names) == ("a", "b", "c")


def test_ten_classes_with_zeros_in_front_are_not_octal(tmp_path: Path) -> None:
    keys = ", ".join(f"{number:03}: c{number}" for number in range(12))
    assert names_of(tmp_path, f"{{{keys}}}") == tuple(f"c{number}" for number in range(12))


@pytest.mark.parametrize("names", ["[a, '']", "\n  0: a\n  1:", "\n  - a\n  -", "[a, ]\n  "])
def test_a_class_without_a_name_is_refused(tmp_path: Path, names: str) -> None:
    if names.startswith("[a, ]"):
        assert names_of(tmp_path, "[a, ]") == ("a",)
        return
    with pytest.raises(UsageError, match="class 1 of names has no name"):
        names_of(tmp_path, names)


@pytest.mark.parametrize("folder", ["2024", "0123", "on", "1e3", "12_000", "2024-01-01"])
def test_folders_whose_name_yaml_changes_are_found(tmp_path: Path, folder: str) -> None:
    data = write(tmp_path / "data.yaml", f"path: {folder}\ntrain: {folder}\nval: [{folder}]\nnames: [x]\n")
    (tmp_path / folder / folder).mkdir(parents=True)
    spec = read_data_yaml(data)
    assert [spec.splits[split][0].path for split in ("train", "val")] == [tmp_path / folder / folder] * 2


# Keys


@pytest.mark.parametrize(
    "key",
    [
        *("anno_path", "train_label_dir", "num_classes", "dataset_name", "augment", "mean", "class_weights", "7"),
        *("names_cn", "names_zh", "trainval", "trains", "Train", "train2", "ntrain", "patch", "paths", "nval"),
    ],
)
def test_keys_of_other_programs_are_passed_over_and_said(tmp_path: Path, key: str, said: list[str]) -> None:
    data = write(tmp_path / "data.yaml", f"train: images\nnames: [x]\n{key}: 1\nis_coco: false\nx_y: 2\n")
    assert list(read_data_yaml(data).splits) == ["train"]
    assert said == [f"{data}: keys that mean nothing here are passed over: {key}, x_y"]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        *(("Train", "train"), ("trian", "train"), ("train_", "train"), ("vla", "val"), ("Val", "val")),
        *(("tset", "test"), ("tests", "test"), ("NC", "nc"), ("cn", "nc"), ("Names", "names"), ("nmaes", "names")),
        ("paht", "path"),
    ],
)
def test_a_misspelt_key_of_ours_is_an_error(tmp_path: Path, key: str, meant: str) -> None:
    others = {"train": "images", "names": "[x]"}
    others.pop(meant, None)
    text = "".join(f"{own}: {value}\n" for own, value in others.items())
    data = write(tmp_path / "data.yaml", f"{text}{key}: images\n")
    with pytest.raises(UsageError, match=rf"unknown key '{key}'; the nearest valid one is '{meant}'"):
        read_data_yaml(data)


@pytest.mark.parametrize("key", ["validation", "valid"])
def test_other_words_for_val_count_where_there_is_no_val(tmp_path: Path, key: str, said: list[str]) -> None:
    data = write(tmp_path / "data.yaml", f"train: images\nnames: [x]\n{key}: [0123]\n")
    assert read_data_yaml(data).splits["val"][0].path == tmp_path / "0123"
    write(data, f"train: images\nval: own\nnames: [x]\n{key}: other\n")
    assert read_data_yaml(data).splits["val"][0].path == tmp_path / "own"
    assert said == [f"{data}: keys that mean nothing here are passed over: {key}"]


def test_numbers_may_stand_in_quotes(tmp_path: Path) -> None:
    data = write(tmp_path / "data.yaml", "train: images\nnames: [x, y]\nnc: \"2\"\nchannels: '3'\n")
    assert read_data_yaml(data).names == ("x", "y")
    with pytest.raises(UsageError, match="nc is '3' but names has 2 entries"):
        read_data_yaml(write(data, "train: images\nnames: [x, y]\nnc: '3'\n"))


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("names: {0: a, 1: b, 1: c}\n", 2, "1"),
        ("names:\n  0: a\n  0: b\n", 4, "0"),
        ("names: [a]\ntrain: other\n", 3, "train"),
    ],
)
def test_a_key_that_is_there_twice_is_an_error(tmp_path: Path, text: str, line: int, key: str) -> None:
    data = write(tmp_path / "data.yaml", f"train: images\n{text}")
    with pytest.raises(UsageError, match=rf"{data} line {line}: not valid YAML \(the key {key} is there twice\)"):
        read_data_yaml(data)


def test_what_comes_through_a_merge_stays_as_it_is_written(tmp_path: Path) -> None:
    text = "a: &a\n  names: [no, 0123]\n  train: 2024-01-01\nb: &b\n  <<: *a\n  train: 0x10\n<<: *b\nval: 1:30\n"
    spec = read_data_yaml(write(tmp_path / "data.yaml", text))
    assert spec.names == ("no", "0123")
    assert [entry.path.name for entries in spec.splits.values() for entry in entries] == ["0x10", "1:30"]


# Ids and crowds of COCO JSON


def coco(folder: Path, ids: list[Any], image_ids: list[Any], **others: Any) -> Index:
    """An index of images 0.png, 1.png ... with these ids, and of a box for each of `image_ids`."""
    images, annotations = [], []
    for number, image_id in enumerate(ids):
        image(folder / f"{number}.png", number)
        images.append({"file_name": f"{number}.png"} | ({} if image_id == "gone" else {"id": image_id}))
    for number, image_id in enumerate(image_ids):
        box = {"bbox": [number, 1, 5, 5], "category_id": 1}
        annotations.append({"id": number, "image_id": image_id} | box | others)
    tree = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    write(folder / "a.json", json.dumps(tree))
    return read_split(read_data_yaml(write(folder / "data.yaml", "train: a.json\nval: a.json\n")), "train")


@pytest.mark.parametrize(
    ("ids", "image_ids"),
    [
        (["img_1", "img_0"], ["img_1", "img_0"]),
        (["img_1", 5], ["img_1", 5]),
        (["007", "7"], ["007", 7]),
        (["1", "2"], [1, "2"]),
        ([1, 2], ["1", 2.0]),
        (["a.jpg", "ü/b.jpg"], ["a.jpg", "ü/b.jpg"]),
        ([2**70, 3], [2**70, "3"]),
        (["0f8fad5b-d9cb-469f-a165-70867728950e", " "], ["0f8fad5b-d9cb-469f-a165-70867728950e", " "]),
    ],
)
def test_images_may_have_texts_as_ids(tmp_path: Path, ids: list[Any], image_ids: list[Any]) -> None:
    index = coco(tmp_path, ids, image_ids)
    assert index.problems == ()
    boxes = {path.name: index.annotations(position)[0].tolist() for position, path in enumerate(index.paths)}
    assert boxes == {"0.png": [[0, 1, 5, 6]], "1.png": [[1, 1, 6, 6]]}


def test_ids_are_handed_on_where_they_are_numbers(tmp_path: Path) -> None:
    assert coco(tmp_path / "a", ["4", 3], ["4", 3]).source_ids.tolist() == [3, 4]
    assert coco(tmp_path / "b", ["4", "x"], ["4", "x"]).source_ids.tolist() == [0, 1]


@pytest.mark.parametrize("wrong", [None, [1], {}, True, 1.5, "", "gone"])
def test_images_without_a_usable_id_are_named(tmp_path: Path, wrong: Any) -> None:
    index = coco(tmp_path, [wrong, wrong], [wrong])
    assert (len(index), index.skipped) == (0, 2)
    assert str(index.problems[0]).startswith(f"{tmp_path}/a.json images[0]: it")
    with pytest.raises(UserError, match=r"none of the 2 images of 'train' can be used; first: .*images\[0\]: it"):
        require_boxes(index, read_data_yaml(tmp_path / "data.yaml"), "train")


def test_a_split_whose_boxes_are_all_to_be_ignored_is_refused(tmp_path: Path) -> None:
    index = coco(tmp_path, [1, 2], [1, 2, 2], iscrowd=1)
    assert len(index.boxes) == 3
    data = tmp_path / "data.yaml"
    for split in ("train", "val"):
        with pytest.raises(UserError, match=rf"{data}: all 3 boxes of '{split}' are to be ignored \(iscrowd"):
            load_index(read_data_yaml(data), split)


def test_a_check_does_not_count_boxes_that_are_to_be_ignored(tmp_path: Path) -> None:
    index = coco(tmp_path, [1, 2], [1, 2, 2], iscrowd=1)
    assert class_rows(index) == [("x", 0, 0, 0, 0, 0)]
    check = check_data(tmp_path / "data.yaml", tmp_path / "runs")
    assert check.errors >= 2
    assert "all 3 boxes of 'train' are to be ignored" in str(check.problems["train"][0])
    assert "0 boxes, 3 to be ignored" in check.page.read_text()


def test_a_selection_that_leaves_ignored_boxes_alone_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    thing = f"<object><name>{{}}</name><difficult>{{}}</difficult>{box}</object>"
    write(tmp_path / "labels/a.xml", f"<annotation>{thing.format('x', 0)}{thing.format('y', 1)}</annotation>")
    data = write(tmp_path / "data.yaml", "train: images\nnames: [x, y]\n")
    index = load_index(read_data_yaml(data), "train")
    assert len(select(index, "x").boxes) == 1
    with pytest.raises(UserError, match="not a single box is left"):
        select(index, "y")


@pytest.mark.parametrize("flag", ["1", "true", "True", 1.0, True, 1])
def test_crowds_may_be_texts_and_a_test_split_of_them_is_an_error(tmp_path: Path, flag: Any) -> None:
    assert coco(tmp_path, [1, 2], [1, 2], iscrowd=flag).ignore.all()
    data = write(tmp_path / "data.yaml", "train: a.json\ntest: a.json\n")
    check = check_data(data, tmp_path / "runs")
    assert "all 2 boxes of 'test' are to be ignored" in str(check.problems["test"][0])


@pytest.mark.parametrize(
    ("flag", "ignored"), [("1", 1), ("1.0", 1), ("yes", 1), ("TRUE", 1), (" True ", 1), ("0", 0), ("no", 0), ("", 0)]
)
def test_difficult_objects_of_other_programs(flag: str, ignored: bool) -> None:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    text = f"<annotation><object><name>x</name><difficult>{flag}</difficult>{box}</object></annotation>"
    assert parse_voc(FILE, text.encode(), ["x"], (30, 40)).ignore.tolist() == [ignored]


def test_a_check_of_a_data_yaml_in_utf_16_names_its_line(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    data = tmp_path / "data.yaml"
    data.write_text("names: [x]\ntrain: nothing\ntest: images\n", encoding="utf-16")
    assert check_data(data, tmp_path / "runs").problems["train"][0].where == f"{data}:2"


@pytest.mark.parametrize(
    ("ids", "image_ids"), [(["000000000001", "000000000002"], [1, 2]), ([1, 2], ["0001", "2"]), (["a", "00"], ["a", 0])]
)
def test_zeros_in_front_of_an_id_do_not_matter(tmp_path: Path, ids: list[Any], image_ids: list[Any]) -> None:
    index = coco(tmp_path, ids, image_ids)
    boxes = {path.name: index.annotations(position)[0].tolist() for position, path in enumerate(index.paths)}
    assert (index.problems, boxes) == ((), {"0.png": [[0, 1, 5, 6]], "1.png": [[1, 1, 6, 6]]})


@pytest.mark.parametrize("other", [0, None])
def test_an_annotation_without_an_image_is_not_of_image_0(tmp_path: Path, other: Any) -> None:
    assert len(coco(tmp_path, [0, 2], [2, other]).boxes) == (1 if other is None else 2)


@pytest.mark.parametrize("ids", [("cat_a", "cat_b"), ("01", "02"), ("c-1", 7), ("", 5)])
def test_categories_may_have_texts_as_ids(tmp_path: Path, ids: tuple[Any, Any]) -> None:
    image(tmp_path / "0.png")
    annotations = [{"id": n, "image_id": 1, "category_id": each, "bbox": [n, 1, 5, 5]} for n, each in enumerate(ids)]
    categories = [{"id": each, "name": name} for each, name in zip(ids, "ab", strict=True)]
    tree = {"images": [{"id": 1, "file_name": "0.png"}], "annotations": annotations, "categories": categories}
    write(tmp_path / "a.json", json.dumps(tree))
    spec = write(tmp_path / "data.yaml", "train: a.json\nnames: [b, a]\n")
    if "" in ids:
        with pytest.raises(UserError, match=r"categories\[0\] has no number or text as its id"):
            load_index(read_data_yaml(spec), "train")
        return
    index = load_index(read_data_yaml(spec), "train")
    assert (index.labels.tolist(), index.problems) == ([1, 0], ())
    assert len(set(index.category_ids.tolist())) == 2
