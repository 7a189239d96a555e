"""Where nothing has changed, a look at the folders is enough; whatever changes is noticed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index import index as index_module
from yoloyard.data.index import unchanged
from yoloyard.data.index.index import load_index

MakeSet = Callable[..., Path]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The label files that were read, in order."""
    seen: list[Path] = []
    original = index_module._read_labels

    def counting(image: object) -> object:
        seen.append(image.labels)  # type: ignore[attr-defined]
        return original(image)  # type: ignore[arg-type]

    monkeypatch.setattr(index_module, "_read_labels", counting)
    return seen


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may be noted however young they are."""
    monkeypatch.setattr(unchanged, "SETTLED_SECONDS", -1000)


@pytest.mark.usefixtures("settled")
def test_without_a_change_no_label_is_read(make_set: MakeSet, read: list[Path]) -> None:
    spec = read_data_yaml(make_set(6))
    first = load_index(spec, "train")
    assert len(read) == 6
    second = load_index(spec, "train")
    assert len(read) == 6
    assert second.file == first.file


def test_young_files_are_read_again(make_set: MakeSet, read: list[Path]) -> None:
    spec = read_data_yaml(make_set(6))
    load_index(spec, "train")
    load_index(spec, "train")
    assert len(read) == 12


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "change",
    ["label in place", "label gone", "image gone", "new image", "new folder", "class", "label beside", "cache gone"],
)
def test_every_change_is_noticed(make_set: MakeSet, read: list[Path], change: str) -> None:
    data = make_set(6)
    images, labels = data.parent / "images/train", data.parent / "labels/train"
    (labels / "0005.txt").unlink()
    before = load_index(read_data_yaml(data), "train")
    label = labels / "0001.txt"
    if change == "label in place":
        status = label.stat()
        label.write_text(("1" if label.read_text()[0] == "0" else "0") + label.read_text()[1:])
        os.utime(label, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "label gone":
        label.unlink()
    elif change == "image gone":
        (images / "0001.png").unlink()
    elif change == "new image":
        shutil.copy(images / "0001.png", images / "0009.png")
    elif change == "new folder":
        (images / "more").mkdir()
        shutil.copy(images / "0001.png", images / "more" / "0009.png")
    elif change == "class":
        data.write_text(data.read_text().replace("dent", "bump"))
    elif change == "label beside":
        shutil.copy(label, images / "0005.txt")
    else:
        assert before.file is not None
        before.file.unlink()
    read.clear()
    after = load_index(read_data_yaml(data), "train")
    assert read
    assert (after.fingerprint() == before.fingerprint()) == (change == "cache gone")


@pytest.mark.usefixtures("settled")
def test_a_list_file_and_what_it_names_are_watched(make_set: MakeSet, read: list[Path], tmp_path: Path) -> None:
    data = make_set(4)
    (tmp_path / "list.txt").write_text("images/train/0000.png\nimages/train/0001.png\nelsewhere/0002.png\n")
    data.write_text("train: list.txt\nnames: [a, b]\n")
    assert len(load_index(read_data_yaml(data), "train")) == 2
    load_index(read_data_yaml(data), "train")
    assert len(read) == 2
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "images/train/0002.png", tmp_path / "elsewhere/0002.png")
    assert len(load_index(read_data_yaml(data), "train")) == 3
    (tmp_path / "list.txt").write_text("images/train/0001.png\n")
    assert len(load_index(read_data_yaml(data), "train")) == 1


@pytest.mark.usefixtures("settled")
def test_a_damaged_note_is_written_anew(make_set: MakeSet, read: list[Path], own_cache: Path) -> None:
    spec = read_data_yaml(make_set(6))
    load_index(spec, "train")
    [note] = (own_cache / "unchanged").iterdir()
    note.write_text(note.read_text()[:-10])
    load_index(spec, "train")
    load_index(spec, "train")
    assert len(read) == 12


@pytest.mark.usefixtures("settled")  # as by a disk whose clock is behind
def test_what_changes_while_it_is_read_is_not_noted(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_set(6)
    label = data.parent / "labels/train/0001.txt"
    original = index_module._read_labels

    def changing(image: object) -> object:
        content = original(image)  # type: ignore[arg-type]
        label.write_text("0 0.5 0.5 0.125 0.125\n")
        return content

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "_read_labels", changing)
        load_index(read_data_yaml(data), "train")
    load_index(read_data_yaml(data), "train")
    index = load_index(read_data_yaml(data), "train")
    [box] = index.annotations(1)[0]
    assert (box[2] - box[0]) / index.sizes[1][1] == 0.125
