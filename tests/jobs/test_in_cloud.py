"""Jobs in clouds, as each machine sees them: through their backup, without SkyPilot; and launches that must not be."""

import dataclasses
import json
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TextIO

import pytest
from cloud_jobs import LAUNCH, prepared

from ssh_host import wait_until
from yoloyard.common.errors import UsageError, UserError
from yoloyard.jobs import in_cloud, sky_task, skypilot
from yoloyard.jobs.data_set import DataSet
from yoloyard.jobs.launched import Launch, write_launch
from yoloyard.jobs.prepare import Prepared
from yoloyard.jobs.sky_task import sky_name
from yoloyard.storage.copies import utc_text


@pytest.fixture
def backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """BACKUP, which another machine can read; this one has no SkyPilot."""
    monkeypatch.setattr(skypilot, "is_installed", lambda: False)
    monkeypatch.setattr(in_cloud, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "backup/job").mkdir(parents=True)
    return tmp_path / "backup"


def launch_of(backup: Path, **changes: Any) -> Launch:
    return dataclasses.replace(LAUNCH, backup=f"file://{backup}", data_source=None, **changes)


def write_state(backup: Path, state: str, **changes: Any) -> None:
    """keeper.json, as a host has brought it there."""
    content = {"state": state, "reason": "", "launch": LAUNCH.time, "run": LAUNCH.run, "attempts": 2, "seconds": 7200,
               "cost": 1.2, "updated": utc_text()} | changes  # fmt: skip
    write(backup / "job/keeper.json", json.dumps(content))


def write(path: Path, text: str) -> None:
    """As a store does: the object is there whole, or not at all."""
    path.with_name("new").write_text(text)
    path.with_name("new").rename(path)


def test_another_machine_finds_a_job_by_its_backup(backup: Path) -> None:
    launch = launch_of(backup)
    write_launch(backup / "job/launch.json", launch)
    assert in_cloud.find("aws", "cracks", f"file://{backup}/") == launch
    with pytest.raises(UserError, match="has no record of a job"):
        in_cloud.find("aws", "cracks", f"file://{backup}/job")
    with pytest.raises(UsageError, match="name its job file"):
        in_cloud.find("aws", "cracks")


def test_status_is_that_of_the_backup(backup: Path) -> None:
    write_state(backup, "running")
    run = backup / LAUNCH.run
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"epoch": 1, "val/map50_95": 0.25}\n{"epoch": 2, "val/map50_95": 0.5}\n')
    (run / "config.yaml").write_text("epochs: 10\n")
    found = in_cloud.status(launch_of(backup))
    assert (found["state"], found["attempts"], found["hours"], found["cost"]) == ("running", 2, 2.0, 1.2)
    assert (found["epoch"], found["epochs"], found["best"]["value"]) == (2, 10, 0.5)


@pytest.mark.parametrize(
    ("status", "lost", "why", "state", "reason"),
    [
        ("STARTING", 0, None, "starting", "SkyPilot looks for a host (STARTING)"),
        ("RECOVERING", 2, None, "starting", "SkyPilot looks for a host (RECOVERING, after 2 lost hosts)"),
        ("FAILED_SETUP", 0, "\x1b[31mno wheel\x1b[0m\nof torch", "failed", "no wheel of torch"),
        ("FAILED_NO_RESOURCE", 0, None, "failed", "SkyPilot ended it (FAILED_NO_RESOURCE)"),
        ("CANCELLED", 0, None, "stopped", "SkyPilot ended it (CANCELLED)"),
        ("RUNNING", 0, None, "running", ""),
    ],
)
def test_status_says_what_skypilot_knows_of_a_job_without_a_host(
    backup: Path, monkeypatch: pytest.MonkeyPatch, status: str, lost: int, why: str | None, state: str, reason: str
) -> None:
    is_over = status not in ("STARTING", "RECOVERING", "RUNNING")
    record = {"status": status, "recovery_count": lost, "failure_reason": why, "is_over": is_over}
    monkeypatch.setattr(in_cloud, "_record", lambda launch: record)
    if not is_over:  # the host that was lost has left it so
        write_state(backup, "running")
    found = in_cloud.status(launch_of(backup))
    assert (found["state"], found["reason"]) == (state, reason)


def test_a_host_that_says_nothing_is_lost(backup: Path) -> None:
    write_state(backup, "running", updated="2026-01-02T10:00:00Z")
    found = in_cloud.status(launch_of(backup))
    assert found["state"] == "interrupted"
    assert "yoloyard launch goes on with it" in found["reason"]


def test_what_a_former_launch_has_left_says_nothing_of_this_one(backup: Path) -> None:
    write_state(backup, "limit", launch="2026-01-01T09:00:00+00:00")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    assert in_cloud.status(launch_of(backup, time=now))["state"] == "starting"


def test_a_failed_job_shows_the_end_of_its_log(backup: Path) -> None:
    write_state(backup, "failed", reason="data.yaml is missing")
    (backup / "job/log.txt").write_text("".join(f"line {number}\n" for number in range(100)))
    found = in_cloud.status(launch_of(backup))
    assert (found["state"], found["reason"], found["log"][-1]) == ("failed", "data.yaml is missing", "line 99")


def test_the_log_is_followed_until_the_job_is_over(backup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []  # what another thread prints while capsys reads may be lost
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=said.append, flush=lambda: None))
    write_state(backup, "running")
    log = backup / "job/log.txt"
    write(log, "first\n")
    with_follow = threading.Thread(target=in_cloud.logs, args=(launch_of(backup), True), daemon=True)
    with_follow.start()
    wait_until(lambda: "".join(said) == "first\n")
    write(log, "first\nsecond\n")
    wait_until(lambda: "".join(said) == "first\nsecond\n")
    write(log, "first\nsecond\nthird\n")
    write_state(backup, "finished")
    with_follow.join()
    assert "".join(said) == "first\nsecond\nthird\n"


def test_stop_asks_the_job_wherever_it_runs(backup: Path) -> None:
    write_state(backup, "running")
    stopping = threading.Thread(target=in_cloud.stop, args=(launch_of(backup),))
    stopping.start()
    while not (backup / "job/stop").exists():
        assert stopping.is_alive()
    write_state(backup, "stopped", reason=(backup / "job/stop").read_text())
    stopping.join()
    assert in_cloud.status(launch_of(backup))["reason"] == "jobs stop"


def test_a_job_without_a_host_is_stopped_at_once(backup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(in_cloud, "_record", lambda launch: {"status": "STARTING", "is_over": False})
    monkeypatch.setattr(skypilot, "load", lambda: None)
    monkeypatch.setattr(skypilot, "cancel", lambda sky, name: ended.append(name))
    in_cloud.stop(launch_of(backup))
    assert ended == [sky_name(launch_of(backup))]


def test_a_job_that_does_not_stop_is_said(backup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_cloud, "STOP_SECONDS", 0.02)
    write_state(backup, "running")
    with pytest.raises(UserError, match="run `yoloyard jobs stop` on laptop, which launched it"):
        in_cloud.stop(launch_of(backup))


def test_without_skypilot_a_launch_says_how_to_get_it(backup: Path) -> None:
    with pytest.raises(UsageError, match=r"pip install 'yoloyard\[cloud\]'"):
        in_cloud.launch(prepared(data_source=None))


def test_a_job_without_a_backup_is_refused() -> None:
    with pytest.raises(UsageError, match="needs `backup:`"):
        in_cloud.describe(prepared(backup=None))


def test_a_dry_run_names_all_that_would_be_made_and_makes_nothing(backup: Path, tmp_path: Path) -> None:
    said = in_cloud.describe(prepared())
    for part in ("yoloyard-cracks", "1 x T4:1", "controller", "s3://factory/runs/cracks", "skypilot-v1", "no bucket",
                 "api_server_access: false", "--- run.sh"):  # fmt: skip
        assert part in said
    assert not (tmp_path / "state").exists()


class FakeSkyPilot:
    """Notes what it is asked for. `failing` is raised while the job is submitted."""

    def __init__(self, jobs: list[dict[str, Any]], failing: BaseException | None = None) -> None:
        self.asked, self.rows, self._failing, self.name = list[str](), jobs, failing, ""
        self.skypilot_config = self
        self.jobs, self.Task = self, self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*values: Any, **options: Any) -> Any:
            self.asked.append(name)
            if name == "stream_and_get" and self._failing and "launch" in self.asked:
                self.rows.append({"job_id": 1, "is_over": False, "status": "STARTING"})
                raise self._failing
            if name == "cancel":
                self.rows.clear()
            return SimpleNamespace()

        return ask


@pytest.fixture
def launch_with(monkeypatch: pytest.MonkeyPatch, backup: Path, tmp_path: Path) -> Callable[[FakeSkyPilot], Launch]:
    """Launch a job with local data by a SkyPilot that does nothing."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/1.txt").write_text("0 .5 .5 1 1")
    monkeypatch.setattr(skypilot, "check_clouds", lambda sky, clouds: None)
    monkeypatch.setattr(sky_task, "credentials", lambda launch: ({}, {}))
    monkeypatch.setattr(skypilot, "configured", lambda sky, clouds: threading.Lock())
    monkeypatch.setattr(sky_task, "stage", _stage)
    monkeypatch.setattr(skypilot, "records", lambda sky: [{"job_name": sky.name, **row} for row in sky.rows])

    def launch(sky: FakeSkyPilot, new: bool = False) -> Launch:
        monkeypatch.setattr(skypilot, "load", lambda: sky)
        job = prepared(backup=f"file://{backup}", data_source=None)
        sky.name = sky_name(job.launch)
        data = DataSet("../data.yaml", "", str(job.launch.data), tmp_path / "data", ("1.txt",), 11)
        return in_cloud.launch(dataclasses.replace(job, data=data), new)

    return launch


def _stage(prepared: Prepared, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_launch(folder / "launch.json", prepared.launch)


def test_a_launch_brings_local_data_to_the_backup(launch_with: Callable[..., Launch], backup: Path) -> None:
    (backup / "job/stop").write_text("from a former launch")
    launch_with(FakeSkyPilot([]))
    sent = json.loads((backup / "job/launch.json").read_text())
    assert sent["data_source"] == f"file://{backup}/data/0123456789abcdef"
    assert (backup / "data/0123456789abcdef/1.txt").read_text() == "0 .5 .5 1 1"
    assert not (backup / "job/stop").exists()


@pytest.mark.parametrize("failing", [KeyboardInterrupt(), RuntimeError("no quota")])
def test_a_launch_that_ends_half_way_takes_back_what_it_began(
    launch_with: Callable[..., Launch], failing: BaseException
) -> None:
    sky = FakeSkyPilot([], failing)
    with pytest.raises(KeyboardInterrupt if isinstance(failing, KeyboardInterrupt) else UserError):
        launch_with(sky)
    assert sky.rows == []
    assert sky.asked[-1] == "get", "it waits for the answer"


def test_a_job_that_runs_is_not_started_again(launch_with: Callable[..., Launch], backup: Path) -> None:
    with pytest.raises(UserError, match="is already with SkyPilot"):
        launch_with(FakeSkyPilot([{"job_id": 1, "is_over": False, "status": "RUNNING"}]))
    write_state(backup, "running")  # started by another machine
    with pytest.raises(UserError, match="cracks runs already"):
        launch_with(FakeSkyPilot([]))


@pytest.mark.parametrize(
    ("state", "new", "run"),
    [("stopped", False, "cracks-2"), ("stopped", True, "cracks-3"), ("finished", False, "cracks-3")],
)
def test_a_launch_goes_on_with_a_run_that_is_not_finished(
    launch_with: Callable[..., Launch], backup: Path, state: str, new: bool, run: str
) -> None:
    write_state(backup, state)
    assert launch_with(FakeSkyPilot([]), new).run == run


# What `sky check lambda` prints without credentials.
CHECKED = """\x1b[1mChecking credentials to enable infra for SkyPilot.\x1b[0m
  Lambda: disabled
    Reason [compute]: Failed to access Lambda Cloud with credentials. To configure credentials, go to:
      https://cloud.lambdalabs.com/api-keys
    to generate API key and add the line
      api_key = [YOUR API KEY]
    to ~/.lambda_cloud/lambda_keys

\N{PARTY POPPER} Enabled infra \N{PARTY POPPER}
  No infra to check/enabled.
"""


def test_a_missing_credential_is_said_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sky:
        def stream_and_get(self, request: object, output_stream: TextIO) -> dict[str, dict[str, list[str]]]:
            output_stream.write(CHECKED)
            return {"default": {"AWS": ["compute", "storage"]}}

    client = ModuleType("sky.client")
    client.sdk = SimpleNamespace(check=lambda infra_list, verbose: None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sky", ModuleType("sky"))
    monkeypatch.setitem(sys.modules, "sky.client", client)
    skypilot.check_clouds(Sky(), ["aws"])
    with pytest.raises(UserError) as raised:
        skypilot.check_clouds(Sky(), ["aws", "lambda"])
    said = "SkyPilot has no access to lambda: Lambda: disabled Reason [compute]: Failed to access Lambda Cloud"
    assert str(raised.value).startswith(said)
    assert str(raised.value).endswith("api_key = [YOUR API KEY] to ~/.lambda_cloud/lambda_keys")
