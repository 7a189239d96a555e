"""Data that come from an object store to a host, and the records of jobs with a real store and a real training."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from object_store import BUCKET, Proxy, Request, no_fault
from yoloyard.common.errors import UserError
from yoloyard.jobs.node.data import fetch_data
from yoloyard.storage.address import open_store

Look = Callable[[int], None]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with three files, one of them in a folder."""
    (tmp_path / "store/images").mkdir(parents=True)
    for name, content in (("data.yaml", b"names: [a]"), ("images/1.jpg", b"one"), ("images/2.jpg", b"two")):
        (tmp_path / "store" / name).write_bytes(content)
    return tmp_path / "store"


def files_in(folder: Path) -> dict[str, bytes]:
    """All files of data below a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".fetched"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_only_what_is_missing_is_fetched(store: Path, tmp_path: Path, said: list[str]) -> None:
    folder, seen = tmp_path / "data", list[int]()
    fetch_data(store.as_uri(), None, folder, seen.append)
    assert files_in(folder) == files_in(store)
    assert seen[-1] == 16
    assert said[0] == f"data: 3 of 3 files (0.0 MB) are fetched from {store.as_uri()}"
    (folder / "images/1.jpg").unlink()
    (folder / "images/2.jpg").write_bytes(b"cut")
    (folder / "own.txt").write_text("of somebody else")
    (store / "images/2.jpg").write_bytes(b"three")
    (store / "data.yaml").unlink()
    fetch_data(store.as_uri(), None, folder, seen.append)
    assert said[2].startswith("data: 2 of 2 files")
    assert files_in(folder) == files_in(store) | {"own.txt": b"of somebody else"}


def test_a_fetch_that_is_ended_goes_on(store: Path, tmp_path: Path, said: list[str]) -> None:
    folder = tmp_path / "data"

    def look(size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_data(store.as_uri(), None, folder, look)
    fetch_data(store.as_uri(), None, folder, lambda size: None)
    assert files_in(folder) == files_in(store)


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"nothing lies below file://.*/empty: correct `data`"):
        fetch_data((tmp_path / "empty").as_uri(), None, tmp_path / "data", lambda size: None)


@pytest.mark.slow
def test_what_is_damaged_on_the_way_is_fetched_again(proxy: Proxy, tmp_path: Path) -> None:
    import obstore

    address = f"s3://{BUCKET}/set"
    for name in ("data.yaml", "images/1.jpg", "images/2.jpg"):
        obstore.put(open_store(address), name, f"content of {name}".encode())
    asked = list[str]()

    def cut_once(request: Request) -> Any:
        asked.append(request.path)
        return "lost" if "1.jpg" in request.path and sum("1.jpg" in path for path in asked) == 1 else no_fault(request)

    proxy.fault = cut_once
    fetch_data(address, None, tmp_path / "data", lambda size: None)
    assert files_in(tmp_path / "data")["images/1.jpg"] == b"content of images/1.jpg"
    proxy.fault = lambda request: (403, "AccessDenied") if request.method == "GET" else no_fault(request)
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(UserError, match="the store answers 403"):
        fetch_data(address, None, tmp_path / "data", lambda size: None)
