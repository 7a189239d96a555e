"""data.yaml as users have it, and what is said when it is wrong."""

import os
from pathlib import Path

import pytest

from yoloyard.common.errors import UsageError
from yoloyard.data.formats.data_yaml import DataSpec, read_data_yaml
from yoloyard.data.formats.sources import find_sources


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def images(spec: DataSpec, split: str) -> list[Path]:
    sources = find_sources(spec, split)
    assert not [problem for problem in sources.problems if problem.is_error]
    return [image.path for image in sources.images]


@pytest.mark.parametrize(
    "names",
    [
        "[dent, scratch]",
        "\n  - dent\n  - scratch",
        "{0: dent, 1: scratch}",
        "{1: scratch, 0: dent}",
        "{'0': dent, '1': scratch}",
    ],
)
def test_names_are_a_list_or_a_map(tmp_path: Path, names: str) -> None:
    data = write(tmp_path / "data.yaml", f"train: images\nnames: {names}\nnc: 2\n")
    assert read_data_yaml(data).names == ("dent", "scratch")


def test_a_split_is_a_folder_a_list_file_or_a_list_of_either(tmp_path: Path) -> None:
    for name in ("a/images/1.jpg", "a/images/deeper/2.PNG", "b/images/3.jpg", "c/images/4.jpg", "a/images/notes.txt"):
        write(tmp_path / name)
    write(tmp_path / "a/images/._1.jpg")  # left behind by another system
    write(tmp_path / "lists/listed.txt", f"b/images/3.jpg\n\n../c/images/4.jpg\n{tmp_path}/a/images/1.jpg\n")
    write(tmp_path / "lists/own.txt", "./here.jpg\n")
    write(tmp_path / "lists/here.jpg")
    data = write(
        tmp_path / "data.yaml",
        "train: a/images\nval: lists/listed.txt\ntest: [a/images, lists/listed.txt, lists/own.txt]\nnames: [x]\n",
    )
    spec = read_data_yaml(data)

    def found(split: str) -> list[str]:
        return [str(image.relative_to(tmp_path)) for image in images(spec, split)]

    assert found("train") == ["a/images/1.jpg", "a/images/deeper/2.PNG"]
    assert found("val") == ["a/images/1.jpg", "b/images/3.jpg", "c/images/4.jpg"]
    assert found("test") == [*found("train"), "b/images/3.jpg", "c/images/4.jpg", "lists/here.jpg"]


@pytest.mark.parametrize("folder", ["/", ".", "elsewhere"])
@pytest.mark.parametrize("root", ["", "path: set\n", "path: ./set\n", "path: ABSOLUTE\n"])
def test_paths_start_from_the_yaml_wherever_the_program_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, root: str
) -> None:
    base = tmp_path / "set" if root else tmp_path
    image = write(base / "train/images/1.jpg")
    write(tmp_path / "elsewhere/train/images/wrong.jpg")
    write(base / "train.txt", "train/images/1.jpg\n./train/images/1.jpg\n")
    text = root.replace("ABSOLUTE", str(base)) + "train: train/images\nval: train.txt\nnames: [x]\n"
    data = write(tmp_path / "data.yaml", text)
    monkeypatch.chdir(tmp_path / folder)
    for given in (data, os.path.relpath(data)):
        spec = read_data_yaml(given)
        assert spec.path == data
        assert images(spec, "train") == [image]
        assert images(spec, "val") == [image]


@pytest.mark.parametrize("root", ["", "path: ../sets/parts\n", "path: parts\n"])
def test_exports_that_name_the_folder_above_are_understood(tmp_path: Path, root: str) -> None:
    image = write(tmp_path / "parts/train/images/1.jpg")
    data = write(tmp_path / "parts/data.yaml", root + "train: ../train/images\nnames: [x]\n")
    assert images(read_data_yaml(data), "train") == [image]


def test_keys_for_other_programs_are_read_past(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    text = f"""
        train: images
        test:
        names: [x]
        roboflow: {{workspace: w, license: CC BY 4.0}}
        download: |
          from pathlib import Path
          Path({str(marker)!r}).touch()
    """
    spec = read_data_yaml(write(tmp_path / "data.yaml", text))
    assert list(spec.splits) == ["train"]
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: images\nnames: [x]\n", r"unknown key 'trian'; the nearest valid one is 'train'"),
        ("train: images\nname_s: [x]\n", r"unknown key 'name_s'; the nearest valid one is 'names'"),
        ("train: images\n", r"no names"),
        ("train: images\nnames: []\n", r"no names"),
        ("train: images\nnames: dent\n", r"names must be a list or a map"),
        ("train: images\nnames: [[a], b]\n", r"class name \['a'\] is not a text; put it in quotes"),
        ("train: images\nnames: {0: a, 2: b}\n", r"none for class 1"),
        ("train: images\nnames: {a: b}\n", r"must be the class numbers"),
        ("train: images\nnames: [a, b]\nnc: 3\n", r"nc is 3 but names has 2 entries"),
        ("names: [a]\n", r"none of train, val, test"),
        ("train: {a: b}\nnames: [a]\n", r"train must be a folder"),
        ("train: {labels: b}\nnames: [a]\n", r"train must be a folder"),
        ("train: {images: a, labels: [b]}\nnames: [a]\n", r"train must be a folder"),
        ("train: gone.json\n", r"no names, and .*gone\.json, whose categories they would be, does not exist"),
        ("train: images\nnames: [a\nval: x\n", r"line 3: not valid YAML"),
        ("train: images\nnames:\n\t- a\n", r"line 3: not valid YAML"),
        ("just text\n", r"expected lines such as"),
        ("train: images\nnames: [a]\nchannels: 0\n", r"channels must be a whole number such as 1 or 3, not 0"),
        ("train: images\nnames: [a]\nchannel: 1\n", r"unknown key 'channel'; the nearest valid one is 'channels'"),
        ("train: images\nnames: [a]\nbits: 12\n", r"bits must be 8 or 16, those of the pixels in memory, not 12"),
        ("train: images\nnames: [a]\nwindow: 4095\n", r"window must be \[low, high\], .* not 4095"),
        ("train: images\nnames: [a]\nwindow: [1%, 4095]\n", r"window must be \[low, high\]"),
        ("train: images\nnames: [a]\nwindow: [4095, 0]\n", r"window is \[4095, 0\]: low must be below high"),
        ("train: images\nnames: [a]\nwindow: [1%, 101%]\n", r"both from 0 to 100"),
        ("train: images\nnames: [a]\nfiles: [_a]\n", r"files must be a list of two or more parts of names"),
        ("train: images\nnames: [a]\nfiles: [_a, _a]\n", r"files names one part twice: _a, _a"),
        ("train: images\nnames: [a]\nfiles: [top/, _b]\n", r"files must be parts of names or folders"),
        ("train: images\nnames: [a]\nchannels: 3\nfiles: [a, b]\n", r"channels is 3 but files names 2"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    data = write(tmp_path / "data.yaml", text)
    with pytest.raises(UsageError, match=rf"{data}.*{message}") as caught:
        read_data_yaml(data)
    assert "\n" not in str(caught.value)


def test_what_is_no_yaml_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file .*gone\.yaml"):
        read_data_yaml(tmp_path / "gone.yaml")
    with pytest.raises(UsageError, match="is a folder"):
        read_data_yaml(tmp_path)
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UsageError, match="not a UTF-8 text file"):
        read_data_yaml(tmp_path / "image.png")
