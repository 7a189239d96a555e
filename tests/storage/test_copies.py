"""Copies of a run at a store: whole or not there, whatever goes wrong on the way."""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import obstore.exceptions
import pytest
from copying import S3, claimed, files_of, send

from object_store import CREDENTIALS, Proxy, Request, no_fault, paths_below
from yoloyard.common.errors import UserError
from yoloyard.storage.address import reason
from yoloyard.storage.copies import PART_BYTES, Copies, Manifest, TakenOverError


@pytest.fixture(params=["s3", "file"])
def address(request: pytest.FixtureRequest, proxy: Proxy, tmp_path: Path) -> str:
    return S3 if request.param == "s3" else f"file://{tmp_path}/copies"


def until_sent(copies: Copies, folder: Path, files: dict[str, Any]) -> int:
    """How many attempts it took."""
    for attempt in range(1, 20):
        with contextlib.suppress(UserError, obstore.exceptions.BaseError):
            send(copies, folder, files)
            return attempt
    raise AssertionError("it never arrives")


def test_a_copy_has_a_manifest_its_parts_and_the_weights_by_name(address: str, tmp_path: Path) -> None:
    copies = claimed(address)
    files = files_of(tmp_path, model=b"weights", state=b"{}", best=b"best")
    send(copies, tmp_path, files)
    parts = {f"parts/{facts['sha256']}" for facts in files.values()}
    assert paths_below(address) == parts | {"run.json", "checkpoints/00000001.json", "weights/best.safetensors"}
    copies.download("weights/best.safetensors", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"best"
    [manifest] = Copies(address).read_manifests()
    assert (manifest.epoch, manifest.position, manifest.files) == (1, 0, files)


def test_only_what_changed_is_sent_and_nothing_of_an_unchanged_checkpoint(proxy: Proxy, tmp_path: Path) -> None:
    copies = claimed(S3)
    large = os.urandom(1_000_000)
    send(copies, tmp_path, files_of(tmp_path, model=large, state=b"1"))
    before = proxy.sent_bytes
    send(copies, tmp_path, files_of(tmp_path, model=large, state=b"2"))
    assert 0 < proxy.sent_bytes - before < 2000  # state and manifest
    counts = proxy.sent_bytes, proxy.requests
    send(copies, tmp_path, files_of(tmp_path, model=large, state=b"2"))
    assert (proxy.sent_bytes, proxy.requests) == counts
    again = claimed(S3)  # another process, which finds what is there
    counts = proxy.sent_bytes, proxy.requests
    send(again, tmp_path, files_of(tmp_path, model=large, state=b"2"))
    assert (proxy.sent_bytes, proxy.requests) == counts


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES])
def test_what_the_server_has_is_checked_without_fetching_it(proxy: Proxy, tmp_path: Path, size: int) -> None:
    copies = claimed(S3)
    read: list[str] = []
    proxy.fault = lambda request: read.append(request.path) if request.method == "GET" else None
    send(copies, tmp_path, files_of(tmp_path, model=os.urandom(size)))
    assert not [path for path in read if "/parts/" in path]


def test_a_byte_that_changes_on_the_way_is_noticed_and_sent_again(proxy: Proxy, tmp_path: Path) -> None:
    copies, files = claimed(S3), files_of(tmp_path, model=os.urandom(100_000))
    proxy.fault = lambda request: "flip" if "/parts/" in request.path and request.method == "PUT" else None
    with pytest.raises(UserError, match="did not arrive as it was sent"):
        send(copies, tmp_path, files)
    assert not copies.read_manifests()
    proxy.fault = no_fault
    send(copies, tmp_path, files)
    assert Copies(S3).download(f"parts/{files['checkpoints/last/model']['sha256']}", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == (tmp_path / "checkpoints/last/model").read_bytes()


def every_second(fault: Any, times: int) -> Callable[[Request], Any]:
    """A fault of every second request, of those with content for "flip"; so many times."""
    numbers = itertools.count(1)

    def decide(request: Request) -> Any:
        if fault == "flip" and (request.method != "PUT" or "/parts/" not in request.path):
            return None
        number = next(numbers)
        return fault if number % 2 == 0 and number <= 2 * times else None

    return decide


@pytest.mark.parametrize("fault", [(500, "InternalError"), (503, "SlowDown"), "cut", "lost", "flip", "slow"], ids=str)
def test_every_second_request_goes_wrong_and_the_copy_is_whole(proxy: Proxy, tmp_path: Path, fault: Any) -> None:
    copies = claimed(S3)
    contents = {"model": os.urandom(PART_BYTES + 5), "ema": os.urandom(1000), "state": b"{}", "best": b"best"}
    files = files_of(tmp_path, **contents)
    proxy.fault = every_second(fault, times=5)
    until_sent(copies, tmp_path, files)
    proxy.fault = no_fault
    assert proxy.failed == 5
    [manifest] = [each for each in Copies(S3).read_manifests() if each.files == files]
    for facts in manifest.files.values():
        assert copies.download(f"parts/{facts['sha256']}", tmp_path / "got") == facts["sha256"]


def test_a_copy_that_is_cut_off_is_no_checkpoint(proxy: Proxy, tmp_path: Path) -> None:
    copies = claimed(S3)
    send(copies, tmp_path, files_of(tmp_path, model=b"first", state=b"1"))
    files = files_of(tmp_path, model=b"second", state=b"2")
    numbers = itertools.count()
    proxy.fault = lambda request: "cut" if next(numbers) > 1 else None  # in the middle of the second part
    with pytest.raises(Exception, match="HTTP error"):
        send(copies, tmp_path, files)
    proxy.fault = no_fault
    assert [each.number for each in Copies(S3).read_manifests()] == [1]
    send(copies, tmp_path, files)
    assert [each.number for each in Copies(S3).read_manifests()] == [1, 2]


def test_a_server_that_is_down_and_comes_back(proxy: Proxy, tmp_path: Path) -> None:
    copies, files = claimed(S3), files_of(tmp_path, model=b"weights", state=b"{}")
    proxy.stop()
    with pytest.raises(Exception, match="error sending request") as down:
        send(copies, tmp_path, files)
    assert reason(down.value) == "the server can't be reached, or the connection was cut"
    proxy.start()
    send(copies, tmp_path, files)
    assert len(Copies(S3).read_manifests()) == 1


def test_what_an_ended_process_left_is_used_if_it_is_right_and_sent_again_if_not(proxy: Proxy, tmp_path: Path) -> None:
    former = claimed(S3)
    files = files_of(tmp_path, model=os.urandom(500_000), ema=os.urandom(600_000))
    for name, content in (("model", (tmp_path / "checkpoints/last/model").read_bytes()), ("ema", bytes(600_000))):
        former._obs.put(former.store, f"parts/{files[f'checkpoints/last/{name}']['sha256']}", content)
    copies = claimed(S3)
    before = proxy.sent_bytes
    send(copies, tmp_path, files)
    assert 600_000 < proxy.sent_bytes - before < 605_000
    part = f"parts/{files['checkpoints/last/ema']['sha256']}"
    assert copies.download(part, tmp_path / "got") == files["checkpoints/last/ema"]["sha256"]


def test_a_bucket_that_is_missing_is_said(proxy: Proxy) -> None:
    with pytest.raises(Exception, match="NoSuchBucket") as missing:
        claimed("s3://nobody-has-it/run")
    assert "there is no such bucket" in reason(missing.value)


def test_a_clock_20_minutes_off_is_said(proxy: Proxy) -> None:
    def fault(request: Request) -> tuple[int, str] | None:  # of a server whose clock is right
        sent = time.mktime(time.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ")) - time.timezone
        return (403, "RequestTimeTooSkewed") if abs(time.time() + 20 * 60 - sent) > 15 * 60 else None

    proxy.fault = fault
    with pytest.raises(Exception, match="Skewed") as skewed:
        claimed(S3)
    assert "the clock of this host is too far from the server's: set it" in reason(skewed.value)


def test_wrong_credentials_are_said_without_them(proxy: Proxy) -> None:
    proxy.fault = lambda request: (403, "SignatureDoesNotMatch")
    with pytest.raises(Exception, match="403") as refused:
        claimed(S3)
    line = reason(refused.value)
    assert "the store refuses these credentials (SignatureDoesNotMatch)" in line
    assert not any(secret in line for secret in CREDENTIALS.values())


@pytest.mark.parametrize(
    "address", ["file", pytest.param("s3", marks=pytest.mark.slow)], indirect=True, ids=["file", "s3"]
)
def test_200_checkpoints_leave_the_newest_and_those_that_are_kept(address: str, tmp_path: Path) -> None:
    copies = claimed(address)
    for epoch in range(1, 201):
        files = files_of(tmp_path, model=b"same", state=str(epoch).encode(), best=str(epoch // 50).encode())
        send(copies, tmp_path, files, epoch, (epoch % 10 == 0, 3))
    assert [each.epoch for each in Copies(address).read_manifests()] == [180, 190, 199, 200]
    kinds = [path.partition("/")[0] for path in paths_below(address)]
    assert (kinds.count("checkpoints"), kinds.count("parts")) == (4, 1 + 4 + 2)  # model, states, best of 3 and of 4


def test_copies_that_may_not_be_removed_stay_and_training_hears_it_once(
    proxy: Proxy, tmp_path: Path, said: list[str]
) -> None:
    copies = claimed(S3)
    proxy.fault = lambda request: (403, "AccessDenied") if request.path.endswith("?delete") else None
    for epoch in range(5):
        send(copies, tmp_path, files_of(tmp_path, state=str(epoch).encode()))
    assert len(copies.read_manifests()) == 5
    assert len([line for line in said if "old copies stay in" in line]) == 1
    proxy.fault = no_fault
    send(copies, tmp_path, files_of(tmp_path, state=b"5"))
    assert len(copies.read_manifests()) == 2


def test_a_second_run_is_refused_with_the_way_out(address: str, tmp_path: Path) -> None:
    first = claimed(address, "run-1")
    with pytest.raises(UserError, match=r"copies of another run, line on .* remove .*/run\.json if that one is over"):
        claimed(address, "run-2")
    send(first, tmp_path, files_of(tmp_path, state=b"1"))
    with pytest.raises(UserError, match=f"or go on with that one: yoloyard train --resume {address}"):
        claimed(address, "run-2")


def test_a_prefix_with_other_objects_is_refused(address: str, proxy: Proxy, tmp_path: Path) -> None:
    other = Copies(address, create=True)
    other._obs.put(other.store, "holiday.jpg", b"jpeg")
    with pytest.raises(UserError, match="holds other objects already"):
        claimed(address)


def test_two_runs_that_begin_at_once_get_one_owner(proxy: Proxy, tmp_path: Path) -> None:
    began: list[str] = []

    def fault(request: Request) -> None:
        if request.method == "PUT" and not began:  # of run.json, after it has looked
            began.append("first")
            claimed(S3, "run-1")

    proxy.fault = fault
    with pytest.raises(UserError, match="copies of another run, line on"):
        claimed(S3, "run-2")


def test_the_same_run_elsewhere_takes_over_and_the_former_process_stops(address: str, tmp_path: Path) -> None:
    former, files = claimed(address), files_of(tmp_path, state=b"1")
    send(former, tmp_path, files)
    later = claimed(address)
    with pytest.raises(TakenOverError, match="the run goes on elsewhere"):
        send(former, tmp_path, files_of(tmp_path, state=b"2"))
    send(later, tmp_path, files_of(tmp_path, state=b"3"))
    assert [each.number for each in Copies(address).read_manifests()] == [1, 2]


def test_a_store_without_conditional_requests_is_used_all_the_same(proxy: Proxy, tmp_path: Path) -> None:
    proxy.fault = lambda request: (501, "NotImplemented") if request.headers["If-None-Match"] else None
    send(claimed(S3), tmp_path, files_of(tmp_path, state=b"1"))
    assert len(Copies(S3).read_manifests()) == 1


def test_a_file_that_changed_on_the_disk_is_not_sent(proxy: Proxy, tmp_path: Path) -> None:
    copies, files = claimed(S3), files_of(tmp_path, model=b"weights")
    (tmp_path / "checkpoints/last/model").write_bytes(b"weighty")
    with pytest.raises(UserError, match="model did not arrive as it was sent"):
        send(copies, tmp_path, files)


def test_a_manifest_that_is_no_json_is_left_out_with_a_line(proxy: Proxy, tmp_path: Path, said: list[str]) -> None:
    copies = claimed(S3)
    send(copies, tmp_path, files_of(tmp_path, state=b"1"))
    copies._obs.put(copies.store, "checkpoints/00000002.json", b"{")
    copies._obs.put(copies.store, "checkpoints/00000003.json", json.dumps({"epoch": 3}).encode())
    assert [each.number for each in Copies(S3).read_manifests()] == [1]
    assert len([line for line in said if "is left out" in line]) == 2
    send(claimed(S3), tmp_path, files_of(tmp_path, state=b"2"))
    assert [each.number for each in Copies(S3).read_manifests()] == [1, 4]


def test_of_several_copies_of_one_moment_the_last_counts(address: str, tmp_path: Path) -> None:
    copies = claimed(address)
    for epoch, state in ((1, b"1"), (2, b"2"), (2, b"2, and the report"), (2, b"2, and its end")):
        send(copies, tmp_path, files_of(tmp_path, state=state), epoch)
    assert [(each.epoch, each.number) for each in Copies(address).read_manifests()] == [(1, 1), (2, 4)]


def test_what_an_ended_process_left_and_nobody_needs_is_removed(address: str, tmp_path: Path) -> None:
    former = claimed(address)
    obstore.put(former.store, "parts/half", b"what was sent before it was killed")
    send(claimed(address), tmp_path, files_of(tmp_path, state=b"1"))
    assert "parts/half" not in paths_below(address)


def test_an_upload_that_is_ended_in_the_middle_leaves_nothing(proxy: Proxy, tmp_path: Path) -> None:
    class EndedError(Exception):
        pass

    def moved(size: int) -> None:
        moves.append(size)
        if len(moves) == 2:
            raise EndedError

    copies, moves = claimed(S3), list[int]()
    files = files_of(tmp_path, model=os.urandom(3 * PART_BYTES))
    with pytest.raises(EndedError):
        copies.send(tmp_path, Manifest(1, 0, False, files), 3, moved)
    assert paths_below(S3) == {"run.json"}
