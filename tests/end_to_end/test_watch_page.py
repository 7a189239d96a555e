"""`yoloyard watch`: a page of runs that are still going. `tests/browser` opens it in a browser."""

import contextlib
import json
import shutil
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from commands import Command
from yoloyard.commands import watch
from yoloyard.commands.watch import FETCHED, CopiedRun, server
from yoloyard.common.errors import UserError
from yoloyard.common.files import RunLock
from yoloyard.common.run_folder import read_run
from yoloyard.evaluation.report import plots
from yoloyard.storage.copies import Copies, Manifest, facts_of


@contextlib.contextmanager
def serving(*folders: Path) -> Iterator[str]:
    """The address of the page of these runs."""
    with server([partial(read_run, folder) for folder in folders], 0) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()


def get(address: str, host: str | None = None) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(address, headers={"Host": host} if host else {})
    with opener.open(request, timeout=60) as answer:
        return str(answer.read().decode())


def test_the_page_follows_the_run_folder_and_draws_curves_once_an_epoch(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[object] = []

    def figure_svg(figure: object) -> str:
        drawn.append(figure)
        return "<svg></svg>"

    monkeypatch.setattr(plots, "figure_svg", figure_svg)
    status, metrics = run_folder / "status.json", run_folder / "metrics.jsonl"
    facts = json.loads(status.read_text()) | {"state": "running", "epochs": 4, "epoch": 3, "step": 1, "steps": 2}
    with serving(run_folder) as address, RunLock() as lock:
        lock.take(run_folder)
        status.write_text(json.dumps(facts | {"seconds": 250}))
        page = get(address)
        assert page.count("<svg") == len(drawn) == 4
        for part in ("running", "<b>2.5/4</b>", "<b>2.5 min</b>", "Last predictions", "fetch("):
            assert part in page
        assert page.count("data:image/jpeg;base64,") == 3
        assert "<h2>Alerts" not in page
        get(address)
        assert len(drawn) == 4
        alert = '{"epoch": 3, "alert": "starved", "message": "<i>waits</i>"}'
        record = metrics.read_text().splitlines()[-1].replace('"epoch": 2', '"epoch": 3')
        metrics.write_text(metrics.read_text() + alert + "\n" + record + "\n")
        (run_folder / "backup.json").write_text('{"address": "s3://bucket/line", "epoch": 2}')
        page = get(address)
        assert "&lt;i&gt;waits&lt;/i&gt;" in page
        assert "s3://bucket/line" in page
        assert len(drawn) == 8


def test_several_runs_lie_over_each_other(run_folder: Path) -> None:
    shutil.copytree(run_folder, "runs/line-2")
    config = Path("runs/line-2/config.yaml")
    config.write_text(config.read_text().replace("seed: 0", "seed: 7"))
    with serving(run_folder, Path("runs/line-2")) as address:
        page = get(address)
    assert "<th>seed</th><td>0</td><td>7</td>" in page
    assert page.count("<figcaption>val/map50_95") == 1
    assert "mAP50-95 of line-2" in page


def test_nothing_but_the_page_is_served_and_to_this_host_alone(run_folder: Path) -> None:
    with serving(run_folder) as address:
        assert get(address, host="localhost:1234") == get(address)
        for path, host, code in (("config.yaml", None, 404), ("../../etc/passwd", None, 404), ("", "evil.org", 403)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                get(address + path, host)
            assert caught.value.code == code


def test_a_run_folder_that_vanishes_leaves_a_page(run_folder: Path) -> None:
    with serving(run_folder) as address:
        shutil.rmtree(run_folder)
        assert "its folder is gone" in get(address)


def send_copies(folder: Path, address: str, epoch: int) -> None:
    copies = Copies(address, create=True)
    copies.claim("run-1", "line")
    files = {name: facts_of(folder / name) for name in FETCHED}
    copies.send(folder, Manifest(epoch, 0, False, files), 3, lambda size: None)


@pytest.mark.parametrize("scheme", ["file", pytest.param("s3", marks=pytest.mark.slow)])
def test_the_copies_of_a_run_are_watched_from_anywhere(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, scheme: str
) -> None:
    if scheme == "s3":
        request.getfixturevalue("proxy")
    address = f"file://{tmp_path}/store" if scheme == "file" else "s3://runs/line"
    status = run_folder / "status.json"
    now = datetime.now(UTC)
    facts = json.loads(status.read_text()) | {"state": "running", "updated": (now - timedelta(minutes=9)).isoformat()}
    status.write_text(json.dumps(facts))
    send_copies(run_folder, address, 2)
    (tmp_path / "fetched").mkdir()
    copied = CopiedRun(address + "/", tmp_path / "fetched")
    run = copied.read()
    assert (run.name, run.state) == (address.rpartition("/")[2], "running")
    assert run.reason.endswith("said so 9.0 min ago; whether it is there can't be seen from here")
    assert (run.backup["address"], run.backup["epoch"]) == (address, 2)
    assert len(run.validation["images"]) == 3
    facts |= {"state": "failed", "reason": "the disk is full"}
    status.write_text(json.dumps(facts))
    send_copies(run_folder, address, 3)
    assert copied.read().state == "running"  # it looks now and then
    monkeypatch.setattr(watch, "FETCH_SECONDS", -1)
    assert copied.read().reason == "the disk is full"
    if scheme == "file":
        shutil.rmtree(tmp_path / "store")
        assert copied.read().problems[0].startswith(f"{address}: ")
        with pytest.raises(UserError, match="holds no copy of a run"):
            CopiedRun(f"file://{tmp_path}/fetched", tmp_path / "line")


def test_a_copy_that_is_no_longer_renewed_is_of_a_run_that_is_gone(run_folder: Path) -> None:
    status = run_folder / "status.json"
    facts = {"state": "running", "updated": (datetime.now(UTC) - timedelta(hours=2)).isoformat()}
    status.write_text(json.dumps(json.loads(status.read_text()) | facts))
    assert read_run(run_folder, is_copy=True).state == "interrupted"


def test_what_cannot_be_watched_is_said(run_folder: Path, yoloyard: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = yoloyard("watch", "--port", port)
    assert code == 2
    assert err == f"yoloyard: port {port} can't be had (Address already in use): is it in use? Say --port NUMBER\n"
    assert yoloyard("watch", "lime")[2].startswith("yoloyard: unknown run 'lime'; did you mean 'line'?")
    assert yoloyard("watch", "--project", "nowhere")[0] == 2
