"""Conversion between YOLO, COCO and Pascal VOC: nothing is lost but what the target can't say."""

import itertools
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from yoloyard.cli.main import main
from yoloyard.common.errors import UsageError, UserError
from yoloyard.data.formats.convert import convert, free_names
from yoloyard.data.formats.data_yaml import DataSpec, read_data_yaml
from yoloyard.data.index.index import Index, load_index, read_split

NAMES = ("big scratch", "裂缝 <&> 'x'", "yes")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    """Images of equal names in two folders, one of two formats, one without objects; a test split without labels."""
    random = np.random.default_rng(0)
    root = tmp_path / "set"
    for name in ("train/a/1.png", "train/b/1.png", "train/b/1.jpg", "train/b/ü 2.png", "val/empty.png", "val/3.jpg"):
        width, height = (int(side) for side in random.integers(20, 600, 2))
        image = root / "images" / name
        image.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), np.zeros((height, width, 3), np.uint8))
        if "empty" in name:
            continue
        rows = []
        for label in range(3):
            (x, y), (w, h) = random.uniform(0.3, 0.7, 2), random.uniform(0.05, 0.6, 2)
            rows.append(f"{label} {x:.9f} {y:.9f} {w:.9f} {h:.9f}\n")
        write((root / "labels" / name).with_suffix(".txt"), "".join(rows))
    (root / "images/test").mkdir()
    cv2.imwrite(str(root / "images/test/t.png"), np.zeros((20, 20, 3), np.uint8))
    names = json.dumps(NAMES, ensure_ascii=False)
    write(root / "data.yaml", f"train: images/train\nval: images/val\ntest: images/test\nnames: {names}\n")
    return read_data_yaml(root / "data.yaml")


def contents(index: Index) -> dict[tuple, list]:
    """Boxes by size and bytes of the image, whatever it is called."""
    found = {}
    for position, path in enumerate(index.paths):
        boxes, labels, ignore = index.annotations(position)
        key = (tuple(index.sizes[position].tolist()), path.parent.name, path.suffix)
        found[key] = [labels.tolist(), ignore.tolist(), boxes]
    return found


@pytest.mark.parametrize(
    "formats", [*itertools.permutations(("yolo", "coco", "voc")), ("coco", "coco"), ("voc", "voc")]
)
def test_a_round_trip_gives_the_same_boxes(spec: DataSpec, tmp_path: Path, formats: tuple[str, ...]) -> None:
    current = spec
    for step, to in enumerate((*formats, "yolo")):
        current = read_data_yaml(convert(current, tmp_path / f"out{step}", to))
        assert current.names == NAMES
    for split in ("train", "val", "test"):
        before, after = (contents(read_split(each, split)) for each in (spec, current))
        assert before.keys() == after.keys()
        for key, (labels, ignore, boxes) in before.items():
            assert after[key][:2] == [labels, ignore]
            np.testing.assert_allclose(after[key][2], boxes, atol=0.01)


def test_images_are_linked_and_sources_untouched(spec: DataSpec, tmp_path: Path) -> None:
    def state() -> list[tuple[str, bytes | None]]:
        return [(str(path), path.read_bytes() if path.is_file() else None) for path in sorted(spec.root.rglob("*"))]

    before = state()
    out = convert(spec, tmp_path / "out", "voc").parent
    assert state() == before
    assert os.path.samefile(out / "JPEGImages/train/a/1.png", spec.root / "images/train/a/1.png")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_where_links_cannot_be_made_images_are_copied(
    spec: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    out = convert(spec, tmp_path / "out", "yolo").parent
    copy, original = out / "images/train/a/1.png", spec.root / "images/train/a/1.png"
    assert copy.read_bytes() == original.read_bytes()
    assert not os.path.samefile(copy, original)


def test_ignore_is_kept_where_it_can_be_said(tmp_path: Path, said: list[str]) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((30, 40, 3), np.uint8))
    rows = [{"image_id": 70, "category_id": 7, "bbox": [1, 1, 5 + crowd, 5], "iscrowd": crowd} for crowd in (0, 1)]
    tree = {
        "images": [{"id": 70, "file_name": "../a.png"}],
        "annotations": rows,
        "categories": [{"id": 7, "name": "x"}],
    }
    write(tmp_path / "json/a.json", json.dumps(tree))
    write(tmp_path / "data.yaml", "train: json/a.json\n")
    source = read_data_yaml(tmp_path / "data.yaml")
    for to in ("coco", "voc"):
        index = load_index(read_data_yaml(convert(source, tmp_path / to, to)), "train")
        assert index.ignore.tolist() == [False, True]
        assert [path.name for path in index.paths] == ["a.png"]
        if to == "coco":
            assert (index.source_ids.tolist(), index.category_ids.tolist()) == ([70], [7])
    index = load_index(read_data_yaml(convert(source, tmp_path / "yolo", "yolo")), "train")
    assert len(index.boxes) == 1
    assert said[-2:] == [
        "train: 1 boxes are to be ignored (crowd, difficult); YOLO can't say that: left out",
        "train: 1 images, 1 boxes",
    ]


def test_names_of_images_stay_apart_and_inside() -> None:
    names = [
        "a/1.jpg",
        "a/1.png",
        "b/1.jpg",
        "../../b/1.jpg",
        "/etc/x.png",
        "images/a.png",
        "./.b.png",
        "n\n\udcff.png",
    ]
    assert free_names(names) == [
        "a/1.jpg",
        "a/1-2.png",
        "b/1.jpg",
        "b/1-2.jpg",
        "etc/x.png",
        "a.png",
        "b.png",
        "n__.png",
    ]


def test_a_folder_with_something_in_it_is_refused_and_a_failure_leaves_nothing(spec: DataSpec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds something already"):
        convert(spec, spec.root, "coco")
    data = spec.root / "data.yaml"
    data.write_text(data.read_text().replace("yes", "bell\\a"))
    with pytest.raises(UserError, match="XML can't hold the name"):
        convert(read_data_yaml(data), tmp_path / "out", "voc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "set"]


def test_an_empty_folder_is_filled_and_stays_the_same(
    spec: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, link = tmp_path / "disk/empty", tmp_path / "link"
    folder.mkdir(parents=True)
    link.symlink_to(folder)
    same = folder.stat().st_ino
    assert len(load_index(read_data_yaml(convert(spec, link, "yolo")), "train")) == 4
    assert link.is_symlink()
    assert folder.stat().st_ino == same
    assert sorted(path.name for path in folder.iterdir()) == ["data.yaml", "images", "labels"]
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    convert(spec, Path(), "coco")
    assert sorted(os.listdir()) == ["annotations", "data.yaml", "images"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["empty"]


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_inside_the_data_set_is_refused(spec: DataSpec, made: bool) -> None:
    out = spec.root / "images/val/converted"
    if made:
        out.mkdir()
    with pytest.raises(UsageError, match=r"converted is in \S+images/val and would become part of the data set"):
        convert(spec, out, "coco")
    assert out.exists() == made


def test_the_command_lists_what_it_left_out(spec: DataSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = spec.root / "labels/train/a/1.txt"
    label.write_text("9 0.5 0.5 0.5 0.5\n")
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit) as end:
        main(["data", "convert", str(spec.path), str(tmp_path / "out"), "--to", "coco"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert f"train: {label}:1: class 9 is not one of 0 to 2; image skipped" in out
    assert "train: 3 images" in out
    assert f"data: {tmp_path}/out/data.yaml" in out


def test_an_unknown_format_is_refused_by_name(
    spec: DataSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["data", "convert", str(spec.path), str(tmp_path / "out"), "--to", "cocoa"])
    assert end.value.code == 2
    assert "--to cocoa: the formats are yolo, coco, voc" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("letter", ["n", "ü"])
def test_long_names_that_are_the_same_are_cut_to_what_disks_can_hold(letter: str) -> None:
    stem = letter * (250 // len(letter.encode()))
    names = free_names([f"a/{stem}.jpg", f"a/{stem}.jpeg", f"a/{stem}.JPG"])
    assert len({name.rpartition(".")[0] for name in names}) == 3
    assert names[0] == f"a/{stem}.jpg"
    assert all(name.startswith("a/") and len(name[2:].encode()) <= 255 for name in names)
