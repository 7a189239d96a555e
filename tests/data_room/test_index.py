"""The index: what it holds, what it leaves out, and when its cache is used."""

import dataclasses
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from yoloyard.common.errors import UsageError, UserError
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index import index as index_module
from yoloyard.data.index import read as read_module
from yoloyard.data.index.index import Index, load_index

MakeSet = Callable[..., Path]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The label files that were parsed, in order; looked at by the tests of the cache."""
    seen: list[Path] = []
    parse = read_module.parse_label_files

    def counting(files: list[tuple[Path, bytes]], *rest: object) -> object:
        seen.extend(path for path, _ in files)
        return parse(files, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(read_module, "parse_label_files", counting)
    return seen


def load(data: Path) -> Index:
    return load_index(read_data_yaml(data), "train")


def contents(index: Index) -> list[object]:
    images = [[part.tolist() for part in index.annotations(i)] for i in range(len(index))]
    others = [index.source_ids.tolist(), index.category_ids.tolist(), list(index.file_names)]
    return [index.names, list(index.paths), index.sizes.tolist(), images, index.problems, *others]


def test_boxes_are_pixels_of_the_original(make_set: MakeSet) -> None:
    data = make_set(3)
    (data.parent / "labels/train/0001.txt").write_text("1 0.5 0.25 0.5 0.5\n0 0 0 0.5 0 0.5 1\n")
    index = load(data)
    assert len(index) == 3
    assert index.names == ("dent", "scratch")
    assert [path.name for path in index.paths] == ["0000.png", "0001.png", "0002.png"]
    assert index.paths[-1] == data.parent / "images/train/0002.png"
    height, width = index.sizes[1]
    boxes, labels, ignore = index.annotations(1)
    np.testing.assert_allclose(boxes, [[width / 4, 0, width * 3 / 4, height / 2], [0, 0, width / 2, height]])
    assert labels.tolist() == [1, 0]
    assert (boxes.dtype, labels.dtype, ignore.dtype) == (np.float32, np.int64, bool)
    assert not ignore.any()
    assert index.annotations(0)[0].shape == (0, 4)


def test_a_second_load_parses_nothing_and_says_the_same(make_set: MakeSet, parsed: list[Path]) -> None:
    data = make_set(6)
    first = contents(load(data))
    assert len(parsed) == 6
    second = load(data)
    assert len(parsed) == 6
    assert contents(second) == first
    assert isinstance(second.boxes, np.memmap)


@pytest.mark.parametrize("change", ["label", "new label", "class", "image", "format"])
def test_a_change_makes_a_new_index(
    make_set: MakeSet, parsed: list[Path], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    data = make_set(6)
    before = load(data)
    label, image = data.parent / "labels/train/0001.txt", data.parent / "images/train/0001.png"
    if change == "label":
        # The same length and the same time of change: only the content tells.
        times = os.stat(label).st_atime_ns, os.stat(label).st_mtime_ns
        label.write_text(("1" if label.read_text()[0] == "0" else "0") + label.read_text()[1:])
        os.utime(label, ns=times)
    elif change == "new label":
        (data.parent / "labels/train/0000.txt").unlink()
        shutil.copy(label, data.parent / "labels/train/0000.txt")
    elif change == "class":
        data.write_text(data.read_text().replace("dent", "bump"))
    elif change == "image":
        shutil.copy(data.parent / "images/train/0002.png", image)
    else:
        indexes = index_module.INDEXES
        monkeypatch.setattr(index_module, "INDEXES", dataclasses.replace(indexes, version=indexes.version + 1))
    after = load(data)
    assert len(parsed) == 12
    assert (contents(after) == contents(before)) == (change == "format")


def test_a_damaged_cache_is_made_anew(make_set: MakeSet, parsed: list[Path]) -> None:
    data = make_set(6)
    first = load(data)
    expected = contents(first)
    assert first.file is not None
    first.file.write_bytes(first.file.read_bytes()[:-8])
    assert contents(load(data)) == expected
    assert len(parsed) == 12
    assert contents(load(data)) == expected
    assert len(parsed) == 12


def test_without_a_writable_cache_it_goes_on(
    make_set: MakeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_set(6)
    (tmp_path / "file").touch()
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "file"))
    index = load(data)
    assert index.file is None
    assert contents(pickle.loads(pickle.dumps(index))) == contents(index)  # noqa: S301  (our own bytes)


def test_nothing_is_written_beside_the_data(make_set: MakeSet) -> None:
    data = make_set(6)
    folders = [data.parent / "images/train", data.parent / "labels/train"]

    def state() -> list[tuple[str, int]]:
        files = [file for folder in folders for file in sorted(folder.iterdir())]
        return [(str(file), file.stat().st_mtime_ns) for file in [*folders, *files, data]]

    before = state()
    for folder in folders:
        folder.chmod(0o555)
    load(data)
    assert state() == before


def test_workers_map_the_cache_instead_of_receiving_it(make_set: MakeSet) -> None:
    index = load(make_set(6))
    pickled = pickle.dumps(index)
    assert len(pickled) < 500
    assert contents(pickle.loads(pickled)) == contents(index)  # noqa: S301  (our own bytes)


def _load_in_process(data: Path, built: Path, start: object, results: object) -> None:
    read = index_module.read_sources

    def counting(*arguments: object) -> object:
        with built.open("a") as file:
            file.write("built\n")
        return read(*arguments)  # type: ignore[arg-type]

    index_module.read_sources = counting  # type: ignore[assignment]  # this process is the test's own
    start.wait()  # type: ignore[attr-defined]
    results.put(contents(load(data)))  # type: ignore[attr-defined]


def test_processes_that_start_at_once_make_one_index(make_set: MakeSet, own_cache: Path, tmp_path: Path) -> None:
    data, built = make_set(12), tmp_path / "built"
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_load_in_process, args=(data, built, start, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert found == [contents(load(data))] * 4
    assert len(list((own_cache / "index").glob("*.safetensors"))) == 1
    assert built.read_text() == "built\n"


def test_what_cannot_be_used_is_left_out_and_named(make_set: MakeSet) -> None:
    data = make_set(8)
    images, labels = data.parent / "images/train", data.parent / "labels/train"
    (images / "0001.png").write_bytes((images / "0001.png").read_bytes()[:-20])
    (images / "0002.png").write_bytes(b"nothing")
    (labels / "0003.txt").write_text("0 0.5 0.5 0.5 0.5\n7 0.5 0.5 0.5 0.5\n")
    (labels / "0004.txt").unlink()
    (labels / "0004.txt").mkdir()
    index = load(data)
    assert [path.name for path in index.paths] == ["0000.png", "0005.png", "0006.png", "0007.png"]
    expected = [
        f"{images}/0001.png: cannot read the image: the file is cut off (no end marker); image skipped",
        f"{images}/0002.png: cannot read the image: not an image that can be decoded; image skipped",
        f"{labels}/0003.txt:2: class 7 is not one of 0 to 1; image skipped",
        f"{labels}/0004.txt: cannot read the labels (Is a directory); image skipped",
    ]
    assert list(map(str, index.problems)) == expected
    assert list(map(str, load(data).problems)) == expected  # from the cache as well


def test_lines_that_lead_nowhere_and_tiny_images_are_named(make_set: MakeSet, tmp_path: Path) -> None:
    import cv2

    data = make_set(3)
    cv2.imwrite(str(tmp_path / "images/train/0000.png"), np.zeros((9, 40, 3), np.uint8))
    (tmp_path / "list.txt").write_text("images/train/0000.png\nimages/train/0001.png\nimages/train/gone.png\n")
    data.write_text("train: list.txt\nnames: [a, b]\n")
    index = load(data)
    assert [path.name for path in index.paths] == ["0001.png"]
    assert list(map(str, index.problems)) == [
        f"{tmp_path}/list.txt:3: there is no image {tmp_path}/images/train/gone.png",
        f"{tmp_path}/images/train/0000.png: 40x9 pixels, below 10 a side; image skipped",
    ]


def test_a_set_that_cannot_be_trained_on_is_refused(make_set: MakeSet, tmp_path: Path) -> None:
    data = make_set(3)
    spec = read_data_yaml(data)
    with pytest.raises(UsageError, match=r"data\.yaml has no 'test'; it names train, val"):
        load_index(spec, "test")

    for label in (tmp_path / "labels/train").iterdir():
        label.write_text("0 5 5 5 5\n")
    with pytest.raises(UserError, match=r"none of the 3 images of 'train' can be used; first: .*0000\.txt:1: 5 is out"):
        load_index(spec, "train")

    for label in (tmp_path / "labels/train").iterdir():
        label.unlink()
    with pytest.raises(UserError, match=r"have not a single label; .* looked for in .*labels/train/0000\.txt"):
        load_index(spec, "train")

    shutil.rmtree(tmp_path / "images/train")
    with pytest.raises(UserError, match=r"train is .*images/train, which does not exist"):
        load_index(spec, "train")

    (tmp_path / "images/train").mkdir()
    with pytest.raises(UserError, match=r"no images for 'train' in .*images/train"):
        load_index(spec, "train")
