"""`--cache disk`: decoded once, by one process, for all runs; whole or not there at all."""

import collections
import dataclasses
import errno
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import filelock
import numpy as np
import pytest
import torch

from yoloyard.common.errors import UserError
from yoloyard.config.settings import TrainConfig
from yoloyard.data.index.index import Index
from yoloyard.data.loading import image_cache
from yoloyard.data.loading.image_cache import DECODED, cached_on_disk, load_resized
from yoloyard.data.loading.loader import make_train_loader

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CONFIG = TrainConfig(batch=4, imgsz=64, workers=0)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[int]:
    """How often each image was decoded for the cache."""
    counter: collections.Counter[int] = collections.Counter()

    def counting(index: Index, position: int, imgsz: int, reduced: bool) -> np.ndarray:
        counter[position] += 1
        return load_resized(index, position, imgsz, reduced)

    monkeypatch.setattr(image_cache, "load_resized", counting)
    return counter


def left_behind() -> list[str]:
    return [file.name for file in DECODED.folder.iterdir() if file.suffix != ".lock"]


@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (1, "spawn")])
def test_samples_are_those_without_a_cache(index: Index, workers: int, start: str | None) -> None:
    plain = make_train_loader(index, CONFIG)
    config = dataclasses.replace(CONFIG, cache="disk", workers=workers)
    cached = make_train_loader(index, config, start_method=start)
    for ours, theirs in zip(plain.epoch(0), cached.epoch(0), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.boxes, theirs.boxes)


def test_images_are_decoded_once_for_all_runs(index: Index, decoded: collections.Counter[int], said: list[str]) -> None:
    first = cached_on_disk(index, 64)
    second = cached_on_disk(index, 64)
    assert decoded.total() == len(index)
    assert len(said) == 1
    assert said[0].startswith("decoding 24 images into ")
    for position in range(len(index)):
        assert (first[position] == load_resized(index, position, 64)).all()
        assert (second[position] == first[position]).all()
    with pytest.raises(ValueError, match="read-only"):
        first[0][:] = 0


def test_of_several_processes_one_decodes(index: Index, decoded: collections.Counter[int]) -> None:
    with ThreadPoolExecutor(3) as threads:
        caches = list(threads.map(lambda _: cached_on_disk(index, 64), range(3)))
    assert decoded.total() == len(index)
    assert all((cache[5] == caches[0][5]).all() for cache in caches)


def test_changed_images_and_another_size_have_another_file(index: Index, decoded: collections.Counter[int]) -> None:
    cached_on_disk(index, 64)
    cached_on_disk(index, 96)
    assert decoded.total() == 2 * len(index)
    height, width = index.sizes[3]
    cv2.imwrite(str(index.paths[3]), np.full((height, width, 3), 9, np.uint8))
    assert (cached_on_disk(index, 64)[3] == 9).all()
    assert len(left_behind()) == 3


@pytest.mark.parametrize("blow", [KeyboardInterrupt, UserError("cannot read the image")])
def test_an_interrupted_cache_is_made_again(
    index: Index, monkeypatch: pytest.MonkeyPatch, blow: BaseException | type[BaseException]
) -> None:
    def interrupted(index: Index, position: int, imgsz: int, reduced: bool) -> np.ndarray:
        if position == 7:
            raise blow
        return load_resized(index, position, imgsz, reduced)

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "load_resized", interrupted)
        with pytest.raises(blow if isinstance(blow, type) else type(blow)):
            cached_on_disk(index, 64)
    assert left_behind() == []
    assert (cached_on_disk(index, 64)[7] == load_resized(index, 7, 64)).all()


def test_what_killed_processes_left_is_removed(index: Index) -> None:
    path = cached_on_disk(index, 64).path
    path.rename(path.with_name(f".{path.name}.12345.tmp"))  # as SIGKILL leaves it
    other = path.with_name(".other.pixels.1.tmp")
    other.touch()  # perhaps being written by another process
    cached_on_disk(index, 64)
    assert sorted(left_behind()) == sorted([other.name, path.name])
    two_days_ago = time.time() - 2 * 86400
    os.utime(other, (two_days_ago, two_days_ago))
    cached_on_disk(index, 96)
    assert other.name not in left_behind()


def test_without_locks_what_another_process_may_be_writing_stays(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")  # as of some network disks

    path = cached_on_disk(index, 64).path
    half = path.with_name(f".{path.name}.12345.tmp")
    path.rename(half)
    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    assert (cached_on_disk(index, 64)[7] == load_resized(index, 7, 64)).all()
    assert half.exists()


def test_a_file_of_another_length_is_made_again(index: Index) -> None:
    path = cached_on_disk(index, 64).path
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    cached_on_disk(index, 64)
    assert path.read_bytes() == whole


def test_a_disk_without_enough_space_is_refused_before_anything_is_written(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: used._replace(free=100_000))
    with pytest.raises(UserError, match=r"--cache disk needs 0\.0 GiB for 24 images at 64 px, but only 0\.0 GiB are"):
        make_train_loader(index, dataclasses.replace(CONFIG, cache="disk"))
    assert left_behind() == []


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"cannot write .*\.pixels: No space left on device"):
        cached_on_disk(index, 64)
    assert left_behind() == []


def test_caches_not_used_for_long_go(index: Index, decoded: collections.Counter[int]) -> None:
    sizes = [64, 96, 128, 160]
    paths = [cached_on_disk(index, size).path for size in sizes]
    for age, path in enumerate(reversed(paths)):
        os.utime(path, (time.time() - age, time.time() - age))
    oldest_in_use = cached_on_disk(index, 64)  # used again, so it is the newest now
    newest = cached_on_disk(index, 192)
    assert sorted(left_behind()) == sorted(path.name for path in (paths[0], paths[2], paths[3], newest.path))
    shutil.rmtree(DECODED.folder)
    assert (oldest_in_use[5] == load_resized(index, 5, 64)).all()  # one that is mapped stays readable


def test_a_cache_folder_that_cannot_be_made_is_named(index: Index, tmp_path: Path, own_cache: Path) -> None:
    own_cache.mkdir(exist_ok=True)
    (own_cache / "decoded").write_text("a file is in the way")
    with pytest.raises(UserError, match=r"cannot write .*decoded/\w+\.pixels"):
        cached_on_disk(index, 64)
