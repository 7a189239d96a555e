"""When a run looks for images of its validation split that training sees too."""

import shutil
from pathlib import Path

import pytest

from yoloyard.commands.data_check import check_data
from yoloyard.common.errors import UserError
from yoloyard.config.settings import TrainConfig
from yoloyard.data.formats.data_yaml import DataSpec, read_data_yaml
from yoloyard.demo.write import write_demo
from yoloyard.training.setup import dataset
from yoloyard.training.setup.dataset import load_splits


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSpec:
    """8 training images and 3 for validation, the last of which is one of the former."""
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    data = write_demo(tmp_path / "line", seed=3, train=8, val=2, size=64)
    for folder, suffix in (("images", ".jpg"), ("labels", ".txt")):
        shutil.copyfile(
            data.parent / folder / "train" / f"0003{suffix}", data.parent / folder / "val" / f"0002{suffix}"
        )
    return read_data_yaml(data)


def duplicates(spec: DataSpec, config: TrainConfig) -> int:
    _, val = load_splits(spec, config)
    return sum("the same bytes as" in problem.what for problem in val.problems)


def test_in_a_small_set_they_are_looked_for(line: DataSpec, said: list[str]) -> None:
    assert duplicates(line, TrainConfig()) == 1
    assert not any("--check-duplicates" in text for text in said)


@pytest.mark.parametrize(("limit", "most"), [("QUICK_PAIRS", 8 * 3), ("QUICK_PIXELS", 3 * 64 * 64)])
def test_in_a_large_set_they_are_not_and_a_line_says_how_to_ask(
    line: DataSpec, monkeypatch: pytest.MonkeyPatch, said: list[str], limit: str, most: int
) -> None:
    monkeypatch.setattr(dataset, limit, most - 1)
    assert duplicates(line, TrainConfig()) == 0
    assert said[-1] == (
        "val (3 images) was not searched for images of train (8), which would take long: --check-duplicates does it "
        f"before this run, yoloyard data check {line.path} once for all runs"
    )
    monkeypatch.setattr(dataset, limit, most)
    assert duplicates(line, TrainConfig()) == 1


def test_who_asks_for_them_gets_them(line: DataSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "QUICK_PAIRS", 0)
    assert duplicates(line, TrainConfig(check_duplicates=True)) == 1
    with pytest.raises(UserError, match="--strict: the data have 1 error"):
        load_splits(line, TrainConfig(strict=True))


def test_what_a_check_of_the_data_has_found_is_known(
    line: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    check_data(line.path, project=tmp_path / "runs")
    monkeypatch.setattr(dataset, "QUICK_PAIRS", 0)
    monkeypatch.setattr(dataset, "find_duplicates", lambda *_: pytest.fail("looked for"))
    assert duplicates(line, TrainConfig()) == 1
    assert not any("--check-duplicates" in text for text in said)
