"""From a store to this host: the newest whole checkpoint of a run, and weights files."""

import json
from pathlib import Path

import pytest
from copying import S3, claimed, files_of, send

from object_store import BUCKET, Proxy
from yoloyard.common.errors import UserError
from yoloyard.storage.copies import Copies
from yoloyard.storage.fetch import fetch_run, local_weights, read_note


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache is the test's."""
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def two(proxy: Proxy, tmp_path: Path) -> Copies:
    """A store with two checkpoints of the run `line`."""
    copies = claimed(S3)
    for epoch in (1, 2):
        send(copies, tmp_path / "line", files_of(tmp_path / "line", model=b"%d" % epoch, best=b"best"), epoch)
    return copies


def test_the_newest_checkpoint_comes_with_all_files(two: Copies, tmp_path: Path, said: list[str]) -> None:
    folder = fetch_run(S3, None, tmp_path / "runs")
    assert folder == tmp_path / "runs/line"
    assert (folder / "checkpoints/last/model").read_bytes() == b"2"
    assert (folder / "weights/best.safetensors").read_bytes() == b"best"
    assert (folder / ".yoloyard-run").exists()
    assert read_note(folder) == {"address": S3, "run": "run-1", "fetched": 2, "epoch": 2}
    assert said == [f"fetched 0.0 MB from {S3} into {folder}"]


def test_what_is_there_and_as_new_is_not_fetched_again(two: Copies, tmp_path: Path, said: list[str]) -> None:
    first = fetch_run(S3, None, tmp_path / "runs")
    (first / "mark").touch()
    assert (fetch_run(S3, None, tmp_path / "runs") / "mark").exists()
    assert "is as new as" in said[-1]
    send(two, tmp_path / "line", files_of(tmp_path / "line", model=b"3"), 3)
    assert fetch_run(S3, None, tmp_path / "runs") == tmp_path / "runs/line-2"  # nothing is ever replaced
    assert (first / "checkpoints/last/model").read_bytes() == b"2"


def test_the_folder_that_the_copies_come_from_goes_on_itself(two: Copies, tmp_path: Path) -> None:
    (tmp_path / "line/backup.json").write_text(json.dumps({"run": "run-1", "writer": two.writer}))
    assert fetch_run(S3, None, tmp_path) == tmp_path / "line"


def test_another_run_of_that_name_stays_as_it_is(two: Copies, tmp_path: Path) -> None:
    (tmp_path / "runs/line").mkdir(parents=True)
    assert fetch_run(S3, None, tmp_path / "runs") == tmp_path / "runs/line-2"


@pytest.mark.parametrize("damage", ["other content", "missing"])
def test_a_damaged_checkpoint_makes_it_the_one_before(
    two: Copies, tmp_path: Path, said: list[str], damage: str
) -> None:
    part = f"parts/{two.manifests[-1].files['checkpoints/last/model']['sha256']}"
    if damage == "missing":
        two._obs.delete(two.store, part)
    else:
        two._obs.put(two.store, part, b"3")
    folder = fetch_run(S3, None, tmp_path / "runs")
    assert (folder / "checkpoints/last/model").read_bytes() == b"1"
    assert f"warning: {S3}: checkpoint 2 is damaged" in said[0]
    assert [path.name for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")] == ["line"]


def test_a_manifest_that_points_out_of_the_folder_is_refused(two: Copies, tmp_path: Path) -> None:
    name, facts = next(iter(two.manifests[-1].files.items()))
    for number, path in ((3, "../outside"), (4, "/outside")):
        content = {"epoch": 3, "position": 0, "kept": False, "writer": "w", "files": {path: facts}}
        two._obs.put(two.store, f"checkpoints/{number:08d}.json", json.dumps(content).encode())
    folder = fetch_run(S3, None, tmp_path / "runs")
    assert read_note(folder)["fetched"] == 2
    assert name
    assert not (tmp_path / "runs/outside").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "holds no whole checkpoint of a run: see whether the prefix is right"),
        ({"run": "r", "name": "../x"}, "the run's name is '../x'"),
        ({"run": "r", "name": "x"}, "no checkpoint had arrived when it ended"),
    ],
)
def test_where_there_is_nothing_to_go_on_with_it_is_said(
    proxy: Proxy, tmp_path: Path, content: dict[str, str] | None, said: str
) -> None:
    copies = Copies(S3)
    if content is not None:
        copies._obs.put(copies.store, "run.json", json.dumps(content).encode())
    with pytest.raises(UserError, match=said):
        fetch_run(S3, None, tmp_path / "runs")


def test_a_server_that_goes_down_is_no_reason_to_take_an_older_checkpoint(
    two: Copies, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.fault = lambda request: (503, "SlowDown") if "/parts/" in request.path else None
    with pytest.raises(UserError, match="the store answers 503"):
        fetch_run(S3, None, tmp_path / "runs")
    assert [path for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize("address", [f"{S3}/weights/best.safetensors", S3, f"{S3}/"])
def test_weights_are_fetched_once_for_each_content(
    two: Copies, proxy: Proxy, tmp_path: Path, said: list[str], address: str
) -> None:
    first = local_weights(address)
    assert (first.read_bytes(), first.suffix) == (b"best", ".safetensors")
    assert local_weights(address) == first
    assert len(said) == 1
    send(two, tmp_path / "line", files_of(tmp_path / "line", best=b"better"))
    assert local_weights(address).read_bytes() == b"better"


def test_weights_that_are_not_there_are_said(two: Copies) -> None:
    with pytest.raises(UserError, match="there is no nothing"):
        local_weights(f"s3://{BUCKET}/nothing.safetensors")


def test_a_file_address_is_as_good(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"weights")
    assert local_weights(f"file://{tmp_path}/best.pt").read_bytes() == b"weights"
