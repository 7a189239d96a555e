"""A cache that can't be written costs no run, and is said in one line, once."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from yoloyard.commands.data_check import check_data
from yoloyard.common.errors import UserError
from yoloyard.common.files import cannot_write
from yoloyard.common.log import shown_lines
from yoloyard.config.settings import TrainConfig
from yoloyard.data.formats.convert import convert
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index import image_facts, unchanged
from yoloyard.data.index.index import read_split
from yoloyard.data.store import warn_not_kept
from yoloyard.training.setup.dataset import load_splits, load_splits_again

MakeSet = Callable[..., Path]
LINE = re.compile(
    r"the cache \S+/cache can't be written \((Not a directory|File exists)\), so images and labels are read again at "
    "each start; make room or name another folder by YOLOYARD_CACHE"
)


def about_the_cache(lines: list[str]) -> list[str]:
    return [line for line in lines if "YOLOYARD_CACHE" in line]


@pytest.fixture
def data(make_set: MakeSet) -> Path:
    """Two splits of the same 24 images, changed last an hour ago."""
    path = make_set()
    shutil.copytree(path.parent / "images" / "train", path.parent / "images" / "val")
    shutil.copytree(path.parent / "labels" / "train", path.parent / "labels" / "val")
    path.write_text("train: images/train\nval: images/val\nnames: [dent, scratch]\n")
    return path


def block(place: Path) -> None:
    """Put a file where a folder of the cache would be: nobody can write below it, not even an administrator."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("")


@pytest.mark.parametrize("blocked", [".", "index", "images", "unchanged"])
def test_a_training_says_once_which_cache_it_cannot_write(
    data: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, blocked: str
) -> None:
    monkeypatch.setattr(unchanged, "SETTLED_SECONDS", -3600)  # so that the files count as old enough for a note
    block(own_cache / blocked)
    spec = read_data_yaml(data)
    for load in (load_splits, load_splits_again):
        said: list[str] = []
        with shown_lines(said.append):
            train, val = load(spec, TrainConfig())
        assert (len(train), len(val)) == (24, 24)
        lines = about_the_cache(said)
        assert len(lines) == (0 if blocked == "images" and load is load_splits_again else 1)
        assert all(LINE.fullmatch(line) for line in lines)


@pytest.mark.parametrize("kind", ["index/*.safetensors", "images/*.safetensors", "images/*.json", "unchanged/*.json"])
def test_each_kind_of_cache_is_said(
    data: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str, said: list[str]
) -> None:
    monkeypatch.setattr(unchanged, "SETTLED_SECONDS", -3600)
    spec = read_data_yaml(data)
    load_splits(spec, TrainConfig())
    files = list(own_cache.glob(kind))
    assert files
    for file in own_cache.glob("*/*.*"):
        file.unlink()  # so that all is made again
        if file in files:
            file.mkdir()  # which no file can be put in the place of
    assert about_the_cache(said) == []
    train, val = load_splits(spec, TrainConfig())
    assert (len(train), len(val)) == (24, 24)
    (line,) = about_the_cache(said)
    assert line.startswith(f"the cache {own_cache} can't be written (Is a directory), so images and labels are read")


def test_a_cache_that_can_be_written_is_not_mentioned(data: Path, said: list[str]) -> None:
    for _ in range(2):
        load_splits(read_data_yaml(data), TrainConfig())
    assert about_the_cache(said) == []


def test_a_check_and_a_conversion_say_it_once_as_well(data: Path, own_cache: Path, tmp_path: Path) -> None:
    block(own_cache)
    for act in (
        lambda: check_data(data, project=tmp_path / "runs"),
        lambda: convert(read_data_yaml(data), tmp_path / "converted", "coco"),
    ):
        said: list[str] = []
        with shown_lines(said.append):
            act()
        assert len(about_the_cache(said)) == 1


def test_a_file_that_vanishes_before_the_note_is_no_matter_of_the_cache(data: Path, said: list[str]) -> None:
    before = unchanged.look([], [str(data)], [])
    data.unlink()
    unchanged.write_note(data.parent / "cache" / "unchanged" / "note.json", "value", before, time.time())
    assert said == []


def test_another_process_that_clears_away_first_is_no_matter_of_the_cache(
    data: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    unlink = Path.unlink

    def gone(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".safetensors":
            raise FileNotFoundError(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(image_facts, "IMAGE_FACTS", dataclasses.replace(image_facts.IMAGE_FACTS, kept=0))
    (own_cache / "images").mkdir(parents=True)
    (own_cache / "images/old.safetensors").touch()  # one too many
    monkeypatch.setattr(Path, "unlink", gone)
    assert len(read_split(read_data_yaml(data), "train")) == 24
    assert about_the_cache(said) == []


@pytest.mark.parametrize("number", [13, 28, 30, 122])  # not permitted, full, read-only, over quota
def test_the_reason_is_the_systems(number: int, said: list[str]) -> None:
    file = Path("/home/somebody/.cache/yoloyard/index/0123")
    system = OSError(number, os.strerror(number))
    wrapped = cannot_write(file / "boxes.npy", system)
    wrapped.__cause__ = system
    expected = f"the cache /home/somebody/.cache/yoloyard can't be written ({os.strerror(number)}), so"
    for error in (system, wrapped):
        warn_not_kept(file, error)
    assert len(said) == 1
    assert said[0].startswith(expected)
    warn_not_kept(file, UserError("of another kind"))
    assert "(of another kind)" in said[1]
