"""Some classes, one class, a share of the images: what stays, and where it lies."""

import dataclasses
import itertools
import os
import pickle

import numpy as np
import pytest

from yoloyard.common.errors import UsageError, UserError
from yoloyard.data.index import index as index_module
from yoloyard.data.index.index import Index, find_index
from yoloyard.data.index.selection import class_numbers, select


def boxes_of(index: Index) -> dict[str, list[list[float]]]:
    """Label and box of each image."""
    images = zip(index.paths, (index.annotations(position) for position in range(len(index))), strict=True)
    return {path.name: [[label, *box] for box, label in zip(*part[:2], strict=True)] for path, part in images}


def test_boxes_of_other_classes_go_and_images_stay(index: Index) -> None:
    chosen = select(index, "scratch")
    expected = {name: [row for row in rows if row[0] == 1] for name, rows in boxes_of(index).items()}
    assert boxes_of(chosen) == expected
    assert any(boxes_of(index)[name] and not rows for name, rows in expected.items())
    assert chosen.names == index.names
    assert chosen.problems == index.problems
    assert (chosen.sizes == index.sizes).all()
    assert boxes_of(select(index, "1")) == expected
    assert boxes_of(select(index, "scratch, 0")) == boxes_of(index)


def test_all_classes_as_one(index: Index) -> None:
    one = select(index, single_cls=True)
    assert one.names == ("object",)
    assert not one.labels.any()
    assert (one.boxes == index.boxes).all()
    both = select(index, "scratch", single_cls=True)
    assert len(both.boxes) == (index.labels == 1).sum()
    assert not both.labels.any()


def test_a_smaller_fraction_is_part_of_a_larger_one(index: Index) -> None:
    shares = [boxes_of(select(index, fraction=fraction, seed=3)) for fraction in (0.01, 0.25, 0.5, 1.0)]
    assert [len(share) for share in shares] == [1, 6, 12, 24]
    for smaller, larger in itertools.pairwise(shares):
        assert smaller.items() <= larger.items()
        assert list(larger) == sorted(larger)
    assert boxes_of(select(index, fraction=0.5, seed=4)) != shares[2]


def test_every_array_of_the_index_is_cut(index: Index) -> None:
    part = select(index, "1", fraction=0.5)
    for field in dataclasses.fields(Index):
        whole, left = getattr(index, field.name), getattr(part, field.name)
        if isinstance(whole, np.ndarray) and field.name != "category_ids":  # which are the classes'
            rows = len(part) if len(whole) == len(index) else len(part.boxes)
            assert len(left) == (len(part) + 1 if field.name == "offsets" else rows), field.name


def test_what_was_selected_is_mapped_from_the_cache(index: Index) -> None:
    part = select(index, "1", True, 0.5, 7)
    assert part.file is not None
    assert part.file != index.file
    assert isinstance(part.boxes, np.memmap)
    assert len(pickle.dumps(part)) < 500
    assert boxes_of(pickle.loads(pickle.dumps(part))) == boxes_of(part)  # noqa: S301  # our own
    assert select(index, "1", True, 0.5, 7).file == part.file
    assert len({select(index, *words).file for words in (("0",), (None, True), ("0", True), (None, False, 0.5))}) == 4
    assert select(index).file == index.file
    # An index that isn't in a cache gives one that isn't either.
    assert select(dataclasses.replace(index, file=None), "1", True, 0.5, 7).file is None


def test_a_damaged_selection_is_made_anew(index: Index) -> None:
    file = select(index, "1").file
    assert file is not None
    file.write_bytes(file.read_bytes()[:-8])
    assert find_index(file) is None
    assert select(index, "1").labels.tolist() == [1] * int((index.labels == 1).sum())
    assert find_index(file) is not None


def test_selections_in_use_and_what_others_write_are_not_forgotten(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "INDEXES", dataclasses.replace(index_module.INDEXES, kept=2))
    used, unused = select(index, "0").file, index.file
    assert used is not None
    assert unused is not None
    other = used.with_name(".new-other.1-2.tmp")
    other.touch()
    for day, file in enumerate((used, unused)):
        os.utime(file, (day, day))
    select(index, "0")
    new = select(index, "1").file
    assert {file for file in used.parent.iterdir() if file.suffix != ".lock"} == {used, new, other}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("scrach", "unknown class 'scrach'; did you mean 'scratch'"),
        ("2", "--classes 2: the classes are 0 to 1 .dent, scratch."),
        ("-1", "unknown class '-1'"),
        (" , ", "names no class"),
    ],
)
def test_a_class_that_is_not_there_is_an_error(classes: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        class_numbers(classes, ("dent", "scratch"))


def test_a_number_that_is_the_name_of_another_class_is_refused() -> None:
    names = ("1", "2", "3")
    assert class_numbers("0", names) == (0,)
    with pytest.raises(UsageError, match=r"--classes 1: 1 is the name of class 0 and the number of class 1 \('2'\)"):
        class_numbers("1", names)
    with pytest.raises(UsageError, match=r"--classes 3: 2 is the name of class 1 and the number of class 2 \('3'\)"):
        class_numbers("3", names)
    assert class_numbers("2,0", ("0", "1", "2")) == (0, 2)


def test_a_name_may_have_a_comma() -> None:
    assert class_numbers(" dent, deep ", ("scratch", "dent, deep", "deep")) == (1,)
    assert class_numbers("deep,scratch", ("scratch", "dent, deep", "deep")) == (0, 2)


def test_nothing_left_is_an_error(index: Index) -> None:
    only_dents = dataclasses.replace(index, labels=np.zeros_like(index.labels), file=None)
    with pytest.raises(
        UserError, match=r"not a single box is left of 46 in the 24 images beside \S+: choose other --classes than 1"
    ):
        select(only_dents, "1")
    with pytest.raises(UsageError, match="--fraction must be above 0"):
        select(index, fraction=0)
