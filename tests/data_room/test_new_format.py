"""A new format of labels is a file and a line of the table: it is then read, checked and written."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from yoloyard.data.formats import table
from yoloyard.data.formats.convert import convert
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.formats.labels import LabelError, LabelledImage, Labels, SplitLabels
from yoloyard.data.index.index import Index, load_index

MakeSet = Callable[..., Path]

# What a file for such a format holds: rows `name,x1,y1,x2,y2` in pixels, a file an image.


def parse_csv(
    files: Sequence[tuple[Path, bytes]], names: Sequence[str], sizes: Sequence[tuple[int, int]], _: int
) -> list[Labels]:
    def parse_row(row: str) -> tuple[float, ...]:
        name, *box = row.split(",")
        if name not in names:
            raise LabelError("class unknown", f"class {name!r} is not one of {', '.join(names)}")
        return (float(names.index(name)), 0.0, *map(float, box))

    found = [Labels() for _ in files]
    for own, (path, content) in zip(found, files, strict=True):
        own.take_rows(path, enumerate(content.decode().splitlines(), start=1), parse_row, "row")
    return found


def format_csv(image: LabelledImage, names: Sequence[str]) -> str:
    pairs = zip(image.labels, image.boxes.tolist(), strict=True)
    return "".join(f"{names[label]},{','.join(map(repr, box))}\n" for label, box in pairs)


# And of a format with a file a split: JSON, by names of images.


def parse_split(path: Path, content: bytes, names: Sequence[str]) -> SplitLabels:
    tree: dict[str, list[list[float]]] = json.loads(content)

    def labels(sizes: np.ndarray) -> list[Labels]:
        tables = [np.array(rows).reshape(-1, 5) for rows in tree.values()]
        return [Labels(rows[:, 1:], rows[:, 0].astype(np.int64), np.zeros(len(rows), bool)) for rows in tables]

    places = [f"{path} {name}" for name in tree]
    return SplitLabels(list(tree), list(range(len(tree))), places, list(range(len(names))), [], 0, labels)


def format_split(images: Iterable[LabelledImage], classes: Sequence[tuple[int, str]]) -> str:
    rows = {image.name: np.column_stack((image.labels, image.boxes)).tolist() for image in images}
    return json.dumps(rows)


@pytest.fixture(autouse=True)
def formats(monkeypatch: pytest.MonkeyPatch) -> None:
    own = table.ImageFormat(".csv", parse_csv, format_csv, label_folders=("rows",), written_to=("images", "rows"))
    monkeypatch.setitem(table.FORMATS, "csv", own)
    readers = (Path.read_bytes, lambda _, content: list(json.loads(content)), lambda *_: ["dent"])
    monkeypatch.setitem(table.FORMATS, "boxes", table.SplitFormat(".boxes", *readers, parse_split, format_split))


def boxes(index: Index) -> dict[str, list[object]]:
    return {path.stem: [part.tolist() for part in index.annotations(i)] for i, path in enumerate(index.paths)}


@pytest.mark.parametrize("to", ["csv", "boxes"])
def test_a_set_in_a_new_format_is_written_and_read(make_set: MakeSet, tmp_path: Path, to: str) -> None:
    spec = read_data_yaml(make_set(12))
    data = convert(spec, tmp_path / to, to)
    written = sorted(path.suffix for path in (tmp_path / to).rglob("*") if path.is_file() and path.suffix != ".png")
    assert written == ([".csv"] * 24 + [".yaml"] if to == "csv" else [".boxes", ".boxes", ".yaml"])
    index = load_index(read_data_yaml(data), "train")
    assert index.problems == ()
    assert boxes(index) == boxes(load_index(spec, "train"))


def test_what_is_wrong_in_a_new_format_is_named_and_a_change_is_noticed(make_set: MakeSet, tmp_path: Path) -> None:
    data = convert(read_data_yaml(make_set(6)), tmp_path / "out", "csv")
    assert len(load_index(read_data_yaml(data), "train")) == 6
    (tmp_path / "out/rows/train/0001.csv").write_text("hole,1,1,5,5\n")
    index = load_index(read_data_yaml(data), "train")
    assert len(index) == 5
    where = f"{tmp_path}/out/rows/train/0001.csv:1"
    assert list(map(str, index.problems)) == [f"{where}: class 'hole' is not one of dent, scratch; image skipped"]
