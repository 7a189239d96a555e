"""Data sets as they come from other systems and programs: side folders, suffixes, spellings, encodings."""

import codecs
import json
import os
import socket
import unicodedata
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from yoloyard.commands.sources import find_sources as find_inputs
from yoloyard.commands.val import class_order
from yoloyard.common.errors import UserError
from yoloyard.common.files import new_run_folder
from yoloyard.data.formats.convert import convert
from yoloyard.data.formats.data_yaml import DataSpec, read_data_yaml
from yoloyard.data.formats.layout import find_label, label_places, search_folder, spellings
from yoloyard.data.formats.sources import find_sources
from yoloyard.data.formats.voc_xml import parse_voc
from yoloyard.data.index.index import Index, load_index, read_split
from yoloyard.data.index.selection import class_numbers
from yoloyard.data.pixels.decode import IMAGE_SUFFIXES

SIZE = (30, 40)  # height, width
ROW = "0 0.5 0.5 0.5 0.5\n"
BOX = [10, 7.5, 30, 22.5]
OBJECT = "<object><name>{}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object>"


def write(path: Path, content: bytes | str = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_image(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    _, content = cv2.imencode(".png", pixels)
    return write(path, content.tobytes())


def label_path(image: Path) -> Path:
    return find_label(image.stem, label_places(image.parent), {})


def spec_of(folder: Path, text: str) -> DataSpec:
    return read_data_yaml(write(folder / "data.yaml", text))


def load(folder: Path, text: str) -> Index:
    return load_index(spec_of(folder, text), "train")


def problems(index: Index) -> list[tuple[str, str]]:
    return [(problem.kind, problem.what) for problem in index.problems]


@pytest.mark.parametrize(
    "folder",
    [
        ".ipynb_checkpoints",
        "@eaDir/a.png",
        "$RECYCLE.BIN/S-1-5-21",
        "$Recycle.Bin",
        ".Trash-1000/files",
        "__MACOSX/images",
        "#recycle",
        "@Recycle",
        ".thumbnails/large",
        "Thumbnails",
        "lost+found",
        "System Volume Information",
        ".git/annex",
        ".cache",
        "deeper/.@__thumb",
        "venv/lib/site-packages/matplotlib",
        "~snapshot/nightly.0",
        "@GMT-2023.01.01-00.00.00",
        "FOUND.000",
        "LOST.DIR",
        "RECYCLED",
        "_thumbs",
        "@SynoResource",
        "[Originals]",
        "deeper/lightning_logs",
    ],
)
def test_folders_of_other_programs_are_passed_over_and_named(tmp_path: Path, folder: str) -> None:
    write_image(tmp_path / "images/a.png")
    write_image(tmp_path / "images" / folder / "b.png")
    write(tmp_path / "images" / folder / "c.heic")
    search = search_folder(tmp_path / "images")
    assert search.files == [f"{tmp_path}/images/a.png"]
    name = next(part for part in Path(folder).parts if part not in ("deeper", "venv", "lib"))
    assert search.passed_over() == f"passed over: 1 folder (hidden, of other programs or results of a run: {name})"


@pytest.mark.parametrize("folder", ["thumb", "originals", "found", "trash", "@gmt", "logs", "lost", "recycling"])
def test_folders_that_data_sets_may_have_are_searched(tmp_path: Path, folder: str) -> None:
    write_image(tmp_path / folder / "a.png")
    assert len(search_folder(tmp_path).files) == 1


@pytest.mark.parametrize(
    ("files", "count"),
    [
        (("args.yaml", "results.csv"), 1),
        (("opt.yaml", "hyp.yaml", "results.csv"), 1),
        (("hyp.yaml", "results.txt"), 1),
        (("args.yaml",), 2),
        (("results.csv",), 2),
        (("data.yaml", "results.csv"), 2),
    ],
)
def test_results_of_other_trainers_are_no_input(tmp_path: Path, files: tuple[str, ...], count: int) -> None:
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "runs/detect/train/weights/b.png")
    for name in files:
        write(tmp_path / "runs/detect/train" / name)
    search = search_folder(tmp_path)
    assert len(search.files) == count
    assert search.passed_over().count("train") == 2 - count


def test_what_a_glob_passes_over_is_said(tmp_path: Path, said: list[str]) -> None:
    write_image(tmp_path / "in/a.png")
    write_image(tmp_path / "in/runs/train/b.png")
    for name in ("args.yaml", "results.csv"):
        write(tmp_path / "in/runs/train" / name)
    write(tmp_path / "in/c.heic")
    write(tmp_path / "in/notes.txt")
    assert [each.address for each in find_inputs([f"{tmp_path}/in/**"])] == [f"{tmp_path}/in/a.png"]
    what = "passed over: 1 file of kinds that are not read (.heic 1)"
    where = "1 folder (hidden, of other programs or results of a run: train)"
    assert said == [f"{tmp_path}/in/**: {what}; {where}"]
    with pytest.raises(UserError, match=r"there is no image, video or folder .*; passed over: 1 file .*\.heic 1"):
        find_inputs([f"{tmp_path}/in/*.heic"])
    with pytest.raises(UserError, match=r"no image, video or folder .*/none\*$"):
        find_inputs([f"{tmp_path}/in/none*"])


@pytest.mark.parametrize("suffix", [".pjpeg", ".pjp"])
def test_more_names_of_jpeg_are_read(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a{suffix}")
    assert len(search_folder(tmp_path).files) == 1


@pytest.mark.parametrize("folder", [".hidden", "thumbnails", "@eaDir", ".cache/set/images", "lost+found"])
def test_a_folder_that_is_named_is_searched_whatever_it_is_called(tmp_path: Path, folder: str) -> None:
    write_image(tmp_path / folder / "below/a.png")
    search = search_folder(tmp_path / folder)
    assert search.files == [f"{tmp_path}/{folder}/below/a.png"]
    assert search.passed_over() == ""


def test_results_of_runs_and_python_environments_are_no_input(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    run = new_run_folder(tmp_path / "results", "night")
    write_image(run / "deeper/b.png")
    write(tmp_path / "env/pyvenv.cfg")
    write_image(tmp_path / "env/share/c.png")
    search = search_folder(tmp_path)
    assert search.files == [f"{tmp_path}/a.png"]
    assert "2 folders" in search.passed_over()
    assert "env, night" in search.passed_over()
    assert search_folder(run).files == [f"{run}/deeper/b.png"]


def test_what_is_no_input_of_a_data_set_is_one_warning(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.png")
    for name in (".ipynb_checkpoints/a-checkpoint.png", "._a.png", "b.HEIC", "c.png_large", "d.JPG.part", "e", "f.mov"):
        write(tmp_path / "images" / name)
    for name in ("README", "notes.txt", "a.json", "a.png.json", "labels.cache", "Thumbs.db", "Makefile"):
        write(tmp_path / "images" / name)
    write(tmp_path / "labels/a.txt", ROW)
    write(tmp_path / "labels/e.txt", ROW)
    index = load(tmp_path, "train: images\nnames: [x]\n")
    assert len(index) == 1
    assert [problem.is_error for problem in index.problems] == [False, False]
    (kind, what), (other, _) = problems(index)
    assert (kind, other) == ("passed over", "label without image")
    assert what.startswith("passed over: 5 files of kinds that are not read (")
    assert all(part in what for part in (".heic 1", ".png_large 1", ".part 1", "no suffix 1", ".mov 1"))
    assert what.endswith("1 folder (hidden, of other programs or results of a run: .ipynb_checkpoints)")


def test_files_of_other_kinds_that_come_later_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yoloyard.data.index.unchanged.SETTLED_SECONDS", -1000)
    write_image(tmp_path / "images/a.png")
    write(tmp_path / "labels/a.txt", ROW)
    assert problems(load(tmp_path, "train: images\nnames: [x]\n")) == []
    write(tmp_path / "images/b.heic")
    assert problems(load(tmp_path, "train: images\nnames: [x]\n")) == [
        ("passed over", "passed over: 1 file of kinds that are not read (.heic 1)")
    ]


@pytest.mark.parametrize("suffix", [".jfif", ".JFIF", ".mpo", ".jif", ".gif", ".avif", ".ppm", ".pgm", ".jp2", ".apng"])
def test_what_the_decoder_reads_is_found_by_its_suffix(tmp_path: Path, suffix: str) -> None:
    if suffix.lower() not in IMAGE_SUFFIXES:
        pytest.skip(f"this OpenCV doesn't read {suffix}")
    form = {".jfif": ".jpg", ".mpo": ".jpg", ".jif": ".jpg", ".pgm": ".pgm"}.get(suffix.lower(), suffix)
    smooth = np.full((60, 80, 3) if form != ".pgm" else (60, 80), 90, np.uint8)
    write(tmp_path / f"images/a{suffix}", cv2.imencode(form, smooth)[1].tobytes())
    write(tmp_path / "labels/a.txt", ROW)
    index = load(tmp_path, "train: images\nnames: [x]\n")
    assert index.boxes.tolist() == [[20, 15, 60, 45]]
    assert index.problems == ()


@pytest.mark.parametrize("to", ["yolo", "coco", "voc"])
def test_a_converted_set_has_all_images_whatever_they_were_called(tmp_path: Path, to: str) -> None:
    names = ["a.png_large", "b", "thumbnails/c.png", "@eaDir\\d.png", "frame.0001", "frame.0002", ".e/f.jpg!d"]
    for seed, name in enumerate(names):
        write_image(tmp_path / "set/images" / name.replace("\\", "/"), seed)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": [10, 7.5, 20, 15]} for number in range(len(names))
    ]
    tree = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    write(tmp_path / "set/a.json", json.dumps(tree))
    data = convert(spec_of(tmp_path / "set", "train: a.json\n"), tmp_path / "out", to)
    index = load_index(read_data_yaml(data), "train")
    assert index.boxes.tolist() == [BOX] * len(names)
    assert index.problems == ()


@pytest.mark.parametrize("suffix", [".TXT", ".Txt", ".XML", ".Xml"])
def test_suffixes_of_labels_may_be_written_in_capitals(tmp_path: Path, suffix: str) -> None:
    content = ROW if suffix.lower() == ".txt" else f"<annotation>{OBJECT.format('x')}</annotation>"
    for place in ("labels", "images", "own"):
        root = tmp_path / place
        image = write_image(root / "images/a.png")
        label = write(root / place / f"a{suffix}", content)
        entry = "{images: images, labels: own}" if place == "own" else "images"
        index = load(root, f"train: {entry}\nnames: [x]\n")
        assert len(index.boxes) == 1
        assert index.problems == ()
        assert place == "own" or label_path(image) == label


def test_a_label_whose_suffix_is_in_small_letters_comes_first(tmp_path: Path) -> None:
    image = write_image(tmp_path / "images/a.png")
    for name in ("a.TXT", "a.txt"):
        write(tmp_path / "labels" / name, ROW)
    if len(os.listdir(tmp_path / "labels")) == 1:
        pytest.skip("this file system doesn't tell capitals")
    assert label_path(image) == tmp_path / "labels/a.txt"


def test_labels_without_an_image_are_named_in_capitals_too(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.png")
    write(tmp_path / "labels/a.txt", ROW)
    write(tmp_path / "labels/b.TXT", ROW)
    (problem,) = load(tmp_path, "train: images\nnames: [x]\n").problems
    assert (problem.kind, problem.where) == ("label without image", f"{tmp_path}/labels/b.TXT")


@pytest.mark.parametrize("label", ["labels/a.txt", "images/a.txt", "labels/a.xml", "labels/a.TXT"])
def test_images_that_share_a_label_file_are_named(tmp_path: Path, label: str) -> None:
    write_image(tmp_path / "images/a.jpg")
    write_image(tmp_path / "images/a.png", 1)
    write_image(tmp_path / "images/b.png", 2)
    write_image(tmp_path / "images/b.jpg", 3)
    write(tmp_path / label, f"<annotation>{OBJECT.format('x')}</annotation>" if "xml" in label else ROW)
    index = load(tmp_path, "train: images\nnames: [x]\n")
    (problem,) = (problem for problem in index.problems if problem.kind == "label of two images")
    assert problem.is_error
    assert str(problem) == f"{tmp_path}/{label}: it is the label file of a.jpg and a.png; each gets its boxes"


COMPOSED, APART = (unicodedata.normalize(form, "größe é 1") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("image", "label"), [(COMPOSED, APART), (APART, COMPOSED), (APART, APART)])
def test_labels_are_found_in_the_other_unicode_form(tmp_path: Path, image: str, label: str) -> None:
    write_image(tmp_path / f"images/{image}.png")
    write(tmp_path / f"labels/{label}.txt", ROW)
    index = load(tmp_path, "train: images\nnames: [x]\n")
    assert index.boxes.tolist() == [BOX]
    assert index.problems == ()


@pytest.mark.parametrize(("own", "other"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_lists_and_coco_files_may_use_the_other_unicode_form(tmp_path: Path, own: str, other: str) -> None:
    image = write_image(tmp_path / f"images/{own}.png")
    write(tmp_path / f"labels/{own}.txt", ROW)
    said = f"images/{other}.png"
    write(tmp_path / "list.txt", said)
    tree = {"images": [{"id": 1, "file_name": said}], "categories": [{"id": 1, "name": "x"}]}
    tree["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 7.5, 20, 15]}]
    write(tmp_path / "a.json", json.dumps(tree))
    for entry in ("list.txt", "a.json"):
        index = load(tmp_path, f"train: {entry}\nnames: [x]\n")
        assert list(index.paths) == [image]
        assert index.boxes.tolist() == [BOX]
        assert index.problems == ()


@pytest.mark.parametrize(
    "line",
    [
        "images\\sub\\a.png",
        ".\\images\\sub\\a.png",
        "data/images/sub/a.png",
        "C:\\Users\\me\\set\\images\\sub\\a.png",
        "D:/images/sub/a.png",
        "./data/images/sub/a.png",
        "data\\images\\sub\\a.png",
        "../images/sub/a.png",
        "./images/sub/a.png",
    ],
)
def test_paths_of_other_systems_and_exports_lead_to_the_file(tmp_path: Path, line: str) -> None:
    image = write_image(tmp_path / "images/sub/a.png")
    write(tmp_path / "labels/sub/a.txt", ROW)
    write(tmp_path / "list.txt", line)
    tree = {"images": [{"id": 1, "file_name": line}], "categories": [{"id": 1, "name": "x"}]}
    tree["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 7.5, 20, 15]}]
    write(tmp_path / "a.json", json.dumps(tree))
    for entry in ("list.txt", "a.json", os.path.dirname(line.replace("\\", "/")), line):
        index = load(tmp_path, f"train: {entry}\nnames: [x]\n")
        assert [os.path.realpath(path) for path in index.paths] == [str(image)]
        assert index.boxes.tolist() == [BOX]
        assert index.problems == ()


def test_a_file_that_is_there_as_it_is_written_comes_first() -> None:
    assert spellings("data/a\\b.jpg") == ["data/a\\b.jpg", "data/a/b.jpg", "a\\b.jpg", "a/b.jpg"]
    assert spellings("images/a.jpg") == ["images/a.jpg"]


def test_an_image_of_another_spelling_that_changes_is_examined_again(tmp_path: Path) -> None:
    image = write_image(tmp_path / "images/a.png")
    tree = {"images": [{"id": 1, "file_name": "images\\a.png"}], "categories": [{"id": 1, "name": "x"}]}
    tree["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}]
    write(tmp_path / "a.json", json.dumps(tree))
    assert len(load(tmp_path, "train: a.json\n")) == 1
    write(image, b"no image any more")
    with pytest.raises(UserError, match="not an image that can be decoded"):
        load(tmp_path, "train: a.json\n")


def lines_of_names(names: list[str]) -> str:
    return "".join(f"{name}\n" for name in names)


@pytest.mark.parametrize(
    "line",
    [
        lambda name: name,
        lambda name: f"{name}.png",
        lambda name: f"JPEGImages/{name}.png",
        lambda name: f"VOC2007/JPEGImages/{name}",
        lambda name: f"{name}  1",
        lambda name: f"{name}.png -1",
        lambda name: f'"{name}"',
        lambda name: f'"{name}" 0',
        lambda name: name.replace("/", "\\"),
        lambda name: f"./{name}",
    ],
)
@pytest.mark.parametrize("place", ["ImageSets/Main", "ImageSets"])
def test_lists_of_pascal_voc_may_have_folders_and_suffixes(
    tmp_path: Path, line: Callable[[str], str], place: str
) -> None:
    names = ["a", "train/b", "train/deep er/c.1", "d 1"]
    for seed, name in enumerate(names):
        write_image(tmp_path / f"JPEGImages/{name}.png", seed)
        write(tmp_path / f"Annotations/{name}.xml", f"<annotation>{OBJECT.format('x')}</annotation>")
    write(tmp_path / place / "train.txt", lines_of_names(list(map(line, names))))
    index = load(tmp_path, f"train: {place}/train.txt\nnames: [x]\n")
    assert set(index.file_names) == {f"{name}.png" for name in names}
    assert len(index.boxes) == len(names)
    assert index.problems == ()


def test_what_a_list_of_pascal_voc_does_not_settle_is_said(tmp_path: Path) -> None:
    for seed, name in enumerate(("a.jpg", "a.png", "b.png")):
        write_image(tmp_path / "JPEGImages" / name, seed)
    write(tmp_path / "Annotations/a.xml", f"<annotation>{OBJECT.format('x')}</annotation>")
    write(tmp_path / "ImageSets/Main/train.txt", "a\nb.jpg\nsub/c\n")
    index = load(tmp_path, "train: ImageSets/Main/train.txt\nnames: [x]\n")
    assert list(index.file_names) == ["a.jpg"]
    assert [(problem.kind, problem.where.rpartition(":")[2]) for problem in index.problems] == [
        ("label of two images", "1"),
        ("image missing", "2"),
        ("image missing", "3"),
    ]


def test_what_convert_writes_as_voc_is_read_by_its_lists(make_set: Callable[..., Path], tmp_path: Path) -> None:
    spec = read_data_yaml(make_set(6))
    out = tmp_path / "voc"
    convert(spec, out, "voc")
    index = load(out, "train: ImageSets/Main/train.txt\nval: ImageSets/Main/val.txt\nnames: [dent, scratch]\n")
    assert index.problems == ()
    np.testing.assert_allclose(index.boxes, load_index(spec, "train").boxes, atol=0.01)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("GBK", "裂缝"),
        ("gb2312", "镕纹"),  # a character that GB2312 hasn't got
        ("GB18030", "裂缝"),
        ("Big5", "裂縫"),
        ("Shift_JIS", "①傷"),
        ("EUC-KR", "균열"),
        ("windows-1251", "трещина"),
        ("utf-16", "裂缝"),
        ("ISO-8859-1", "fêlure"),
    ],
)
def test_xml_in_the_encoding_that_it_declares_is_read(encoding: str, name: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n<annotation>{OBJECT.format(name)}</annotation>'
    codec = {"gb2312": "gbk", "Shift_JIS": "cp932"}.get(encoding, encoding)
    parsed = parse_voc(Path("a.xml"), text.encode(codec), [name], SIZE)
    assert parsed.problems == []
    assert parsed.boxes.tolist() == [[1, 2, 9, 8]]


@pytest.mark.parametrize(
    ("encoding", "content", "what"),
    [
        ("GBK", b"\xff\xff", "codec can't decode"),
        ("klingon", b"x", "unknown encoding: klingon"),
        ("rot13", b"x", "rot13"),
        ("utf-8", "裂缝".encode("gbk"), "not valid XML"),
    ],
)
def test_xml_in_another_encoding_than_it_declares_is_refused(encoding: str, content: bytes, what: str) -> None:
    head, tail = f'<?xml version="1.0" encoding="{encoding}"?>\n<annotation>', "</annotation>"
    start, end = OBJECT.split("{}")
    parsed = parse_voc(Path("a.xml"), head.encode() + start.encode() + content + (end + tail).encode(), ["x"], SIZE)
    assert not parsed.usable
    assert what in str(parsed.problems[0])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_may_be_in_any_unicode_encoding(tmp_path: Path, encoding: str) -> None:
    write_image(tmp_path / "images/größe.png")
    tree = {"images": [{"id": 1, "file_name": "größe.png"}], "categories": [{"id": 1, "name": "裂缝"}]}
    tree["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 7.5, 20, 15]}]
    write(tmp_path / "a.json", json.dumps(tree, ensure_ascii=False).encode(encoding))
    index = load(tmp_path, "train: a.json\n")
    assert index.names == ("裂缝",)
    assert index.boxes.tolist() == [BOX]


def test_texts_may_be_in_utf_16_as_powershell_writes_them(tmp_path: Path) -> None:
    write_image(tmp_path / "images/größe.png")
    write(tmp_path / "labels/größe.txt", ROW.encode("utf-16"))
    write(tmp_path / "list.txt", codecs.BOM_UTF16_LE + "images\\größe.png\r\n".encode("utf-16-le"))
    write(tmp_path / "data.yaml", "train: list.txt\nnames: [裂缝]\n".encode("utf-16"))
    index = load_index(read_data_yaml(tmp_path / "data.yaml"), "train")
    assert (index.names, index.boxes.tolist()) == (("裂缝",), [BOX])


@pytest.mark.parametrize("seconds", [10_413_792_000, 253_402_300_799, -11_644_473_600, -1])  # years 2300, 9999, 1601
def test_times_of_change_of_any_year_are_kept(tmp_path: Path, seconds: int) -> None:
    image = write_image(tmp_path / "images/a.png")
    write(tmp_path / "labels/a.txt", ROW)
    for file in (image, tmp_path / "labels/a.txt", tmp_path / "images"):
        os.utime(file, (seconds, seconds))
    for _ in range(2):
        assert read_split(spec_of(tmp_path, "train: images\nnames: [x]\n"), "train").boxes.tolist() == [BOX]


def test_a_label_of_two_images_is_none_where_one_image_is_asked_for(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.jpg")
    write_image(tmp_path / "images/a.png", 1)
    write(tmp_path / "labels/a.txt", ROW)
    write(tmp_path / "list.txt", "images/a.png\n")
    assert find_sources(spec_of(tmp_path, "train: list.txt\nnames: [x]\n"), "train").problems == []


# What is no regular file


def test_pipes_sockets_and_devices_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "images/a.png")
    os.mkfifo(tmp_path / "images/b.png")
    os.symlink("b.png", tmp_path / "images/c.png")
    os.symlink("/dev/zero", tmp_path / "images/d.png")
    for name, target in (("loop", "loop"), ("loop.png", "loop.png"), ("gone.png", "nowhere")):
        os.symlink(target, tmp_path / "images" / name)
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path / "images")  # the address of a socket must be short
        server.bind("e.png")
        index = read_split(spec_of(tmp_path, "train: images\nnames: [a]\n"), "train")
    assert [path.name for path in index.paths] == ["a.png"]
    what = "passed over: 5 files of kinds that are not read (no regular file 4, no suffix 1)"
    assert ("passed over", what) in problems(index)
    assert [problem.kind for problem in index.problems].count("image unreadable") == 2


@pytest.mark.parametrize("target", [None, "/dev/zero", "/dev/null"])
def test_labels_that_are_no_regular_file_are_an_error(tmp_path: Path, target: str | None) -> None:
    write_image(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    if target is None:
        os.mkfifo(tmp_path / "labels/a.txt")
    else:
        os.symlink(target, tmp_path / "labels/a.txt")
    index = read_split(spec_of(tmp_path, "train: images\nnames: [a]\n"), "train")
    assert len(index) == 0
    assert problems(index) == [("label unreadable", "the labels are no regular file, but a pipe or a device")]


# Letters with accents as one or as two characters


def test_label_folders_in_the_other_unicode_form_are_found(tmp_path: Path) -> None:
    for number, (images, labels) in enumerate([(COMPOSED, APART), (APART, COMPOSED)]):
        root = tmp_path / str(number)
        write_image(root / "images" / images / "a.png")
        write(root / "labels" / labels / "a.txt", ROW)
        for text in ("train: images", "train: {images: images, labels: labels}"):
            assert load(root, f"{text}\nnames: [x]\n").boxes.tolist() == [BOX]


def test_class_names_in_the_other_unicode_form_are_the_same(tmp_path: Path) -> None:
    assert parse_voc(
        Path("a.xml"), f"<annotation>{OBJECT.format(APART)}</annotation>".encode(), [COMPOSED], SIZE
    ).usable
    assert parse_voc(
        Path("a.xml"), f"<annotation>{OBJECT.format(COMPOSED)}</annotation>".encode(), [APART], SIZE
    ).usable
    write_image(tmp_path / "a.png")
    tree = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 7, "name": APART}]}
    tree["annotations"] = [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 8, 6]}]
    write(tmp_path / "a.json", json.dumps(tree))
    assert load(tmp_path, f"train: a.json\nnames: [b, {COMPOSED}]\n").labels.tolist() == [1]
    assert class_numbers(f"{APART},b", ["b", COMPOSED]) == class_numbers(f"{COMPOSED},b", ["b", APART]) == (0, 1)
    assert class_order(["b", APART], [COMPOSED, "b"], "x") == [1, 0]


# XML whose declaration is wrong


@pytest.mark.parametrize(
    ("codec", "head"),
    [
        ("utf-8-sig", '<?xml version="1.0" encoding="gbk"?>'),
        ("utf-8-sig", '<?xml version="1.0" encoding="iso-8859-1"?>'),
        ("utf-16", '<?xml version="1.0" encoding="UTF-8"?>'),
        ("utf-8", '<?xml version="1.0" encoding="utf-16"?>'),
        ("utf-8", '<?xml version="1.0" encoding="unicode"?>'),
        ("utf-8", '<?xml version="1.0" encoding="UTF8"?>'),
        ("utf-8", '\n\n<?xml version="1.0" encoding="UTF-8"?>'),
        ("utf-8", "\r\n  <?xml version='1.0'?>"),
        ("gbk", '<?xml version="1.0" encoding="x-gbk"?>'),
        ("gbk", '\n<?xml version="1.0" encoding="GBK"?>'),
        ("utf-8", "\n"),
        ("utf-16", ""),
    ],
)
def test_xml_whose_declaration_is_wrong_or_late_is_read(codec: str, head: str) -> None:
    text = f"{head}<annotation>{OBJECT.format('裂缝')}</annotation>"
    assert parse_voc(Path("a.xml"), text.encode(codec), ["裂缝"], SIZE).boxes.tolist() == [[1, 2, 9, 8]]


def test_lines_are_counted_from_the_start_of_the_file() -> None:
    text = f'\n<?xml version="1.0"\n?>\n<annotation>{OBJECT.format("y")}</annotation>'
    assert parse_voc(Path("a.xml"), text.encode(), ["x"], SIZE).problems[0].where == "a.xml:4"


# Lists


@pytest.mark.parametrize(
    "line",
    [
        "Annotations/sub/a.xml",
        "./Annotations/sub/a.XML",
        "sub/a.xml",
        "sub/a.JPG",
        "JPEGImages/sub/a.jpg Annotations/sub/a.xml",
        "sub/a.jpg\tsub/a.xml",
        '"JPEGImages/sub/a.jpg" "Annotations/sub/a.xml"',
        "/home/me/set/JPEGImages/sub/a.jpg",
        "sub/a 1",
    ],
)
def test_a_line_of_pascal_voc_may_name_the_label_file(tmp_path: Path, line: str) -> None:
    write_image(tmp_path / "JPEGImages/sub/a.jpg")
    write_image(tmp_path / "JPEGImages/sub/b.jpg", 1)
    write(tmp_path / "Annotations/sub/a.xml", f"<annotation>{OBJECT.format('x')}</annotation>")
    write(tmp_path / "ImageSets/Main/train.txt", f"{line}\n")
    index = load(tmp_path, "train: ImageSets/Main/train.txt\nnames: [x]\n")
    assert ([path.name for path in index.paths], len(index.boxes), index.problems) == (["a.jpg"], 1, ())


@pytest.mark.parametrize(
    "line", ['"images/a b.png"', "'./images/a b.png'", "images/a b.png labels/ab.txt", "images/a b.png"]
)
def test_a_line_of_any_list_may_have_quotes_or_a_label_file(tmp_path: Path, line: str) -> None:
    write_image(tmp_path / "images/a b.png")
    write(tmp_path / "labels/a b.txt", ROW)
    write(tmp_path / "train.txt", f"{line}\n")
    index = load(tmp_path, "train: train.txt\nnames: [x]\n")
    assert ([path.name for path in index.paths], len(index.boxes), index.problems) == (["a b.png"], 1, ())
