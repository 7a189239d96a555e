"""The keeper of a job: when it ends a training, what it saves, and what it counts."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from keeping import MADE_UP, MadeUpClock, job_folder, starts, state_of, until

from yoloyard.common.errors import UserError
from yoloyard.common.files import write_soon
from yoloyard.jobs.node import keeper, records, training
from yoloyard.jobs.node.keeper import keep
from yoloyard.jobs.node.limits import Idle
from yoloyard.jobs.node.records import Records
from yoloyard.jobs.node.training import Training
from yoloyard.jobs.node.upload import send_newest
from yoloyard.storage.address import open_store
from yoloyard.storage.copies import Copies


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The training is made up, the variables of this process are those of no cluster, and its signals come back."""
    monkeypatch.setattr(training, "COMMAND", MADE_UP)
    monkeypatch.setattr(keeper, "LOOK_SECONDS", 2.0)
    for name in keeper.RANKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("YOLOYARD_ATTEMPT", "first")
    former = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    for number, handler in former:
        signal.signal(number, handler)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUpClock:
    """Two minutes for each look of the keeper, from the first step on, until the training is asked to end."""
    clock, original = MadeUpClock(), Training.ask_to_end
    asked: list[bool] = []

    def ask(training: Training) -> None:
        asked.append(True)
        original(training)

    def holds() -> bool:
        status = tmp_path / "job/runs/line/status.json"
        return bool(asked) or not status.exists() or json.loads(status.read_text())["step"] < 1

    monkeypatch.setattr(Training, "ask_to_end", ask)
    clock.holds = holds
    return clock


def steps(folder: Path, then: Callable[[], object]) -> None:
    """Once the training in `folder` makes steps, do `then`, meanwhile."""

    def work() -> None:
        until((folder / "runs/line/status.json").exists)
        then()

    threading.Thread(target=work).start()


def preempted() -> None:
    """What a host sends before it goes."""
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGTERM)


def backup_of(folder: Path) -> dict[str, Any]:
    """The records of the job at its backup."""
    store = open_store(folder.as_uri())
    paths = [each["path"] for chunk in obstore.list(store, "job") for each in chunk]
    return {path: bytes(obstore.get(store, path).bytes()) for path in paths}


def test_a_job_that_finishes(tmp_path: Path, said: list[str]) -> None:
    folder = job_folder(tmp_path / "job", "runs 3")
    assert keep(folder, MadeUpClock(1)) == 0
    state = state_of(folder)
    assert (state["state"], state["attempts"], state["run"]) == ("finished", 1, "line")
    assert starts(folder) == [""]
    settings = json.loads((folder / "train.json").read_text())
    assert settings == {"data": "data.yaml", "project": f"{folder}/runs", "name": "line", "exist_ok": True}


@pytest.mark.parametrize(
    ("limit", "said_first"),
    [
        ({"max_hours": 1.0}, "max_hours: it has run for 1.0"),
        ({"max_cost": 4.0, "nodes": 2}, "max_cost: it has cost $4."),  # $2 an hour for each of two hosts
    ],
)
def test_a_limit_ends_the_training_after_a_save(
    tmp_path: Path, clock: MadeUpClock, limit: dict[str, Any], said_first: str
) -> None:
    (tmp_path / "backup").mkdir()
    backup = (tmp_path / "backup").as_uri()
    folder = job_folder(tmp_path / "job", "runs 10000", backup=backup, **limit)
    assert keep(folder, clock) == 0
    state = state_of(folder)
    assert state["state"] == "limit"
    assert state["reason"].startswith(said_first)
    newest = Copies(f"{backup}/line").read_manifests()[-1]  # the training itself has sent nothing
    assert {"checkpoints/last/state.json", "job.json"} <= newest.files.keys()
    there = backup_of(tmp_path / "backup")
    assert json.loads(there["job/keeper.json"])["state"] == "limit"
    assert json.loads(there["job/launch.json"])["max_hours"] == limit.get("max_hours")
    assert keep(folder, clock) == 0  # the same launch is not begun again
    assert len(starts(folder)) == 1


def test_what_the_training_has_not_sent_is_sent_again_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    (tmp_path / "backup").mkdir()
    folder = job_folder(tmp_path / "job", "runs 2", backup=(tmp_path / "backup").as_uri())
    original, tries = keeper.send_newest, list[int]()

    def fails_twice(*arguments: Any) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise UserError("the server can't be reached")
        original(*arguments)

    monkeypatch.setattr(keeper, "send_newest", fails_twice)
    assert keep(folder, MadeUpClock()) == 0
    assert len(tries) == 3
    assert state_of(folder)["reason"] == "epoch 1 was the last, and the report is written"


def test_a_backup_that_never_answers_keeps_no_host_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backup").mkdir()
    folder = job_folder(tmp_path / "job", "runs 2", backup=(tmp_path / "backup").as_uri())

    def fails(*arguments: Any) -> None:
        raise UserError("the server can't be reached")

    monkeypatch.setattr(keeper, "send_newest", fails)
    clock = MadeUpClock(1000)
    assert keep(folder, clock) == 0
    assert "the last checkpoint is not in" in state_of(folder)["reason"]
    assert state_of(folder)["state"] == "finished"


def test_a_training_that_hangs_is_idle_and_is_killed(tmp_path: Path, said: list[str]) -> None:
    folder = job_folder(tmp_path / "job", "hangs 2", idle_minutes=5)
    clock = MadeUpClock(10)
    clock.holds = lambda: not (folder / "runs/line/status.json").exists()
    assert keep(folder, clock) == 0
    assert state_of(folder)["state"] == "limit"
    assert state_of(folder)["reason"].startswith("idle_minutes: no step for ")
    assert any("it is killed" in line for line in said)


def test_idle_is_longer_before_the_first_step() -> None:
    idle = Idle(5.0, 0.0)
    assert idle.look(60 * 29.0, None, False) is None
    assert idle.look(60 * 30.0, None, False) == "idle_minutes: no step for 30.0 min"
    assert idle.look(60 * 31.0, "step 1", True) is None
    assert idle.look(60 * 35.9, "step 1", True) is None
    assert idle.look(60 * 36.0, "step 1", True) == "idle_minutes: no step for 5.0 min"
    assert Idle(None, 0.0).look(1e9, None, True) is None


@pytest.mark.parametrize(
    ("behaviour", "code", "said_last"),
    [("wrong", 2, "did you mean 'batch'?"), ("fails 2", 3, "the disk is full"), ("killed 0", 3, "too little memory?")],
)
def test_what_can_not_go_on_ends_at_once(tmp_path: Path, behaviour: str, code: int, said_last: str) -> None:
    (tmp_path / "backup").mkdir()
    folder = job_folder(tmp_path / "job", behaviour, backup=(tmp_path / "backup").as_uri())
    (folder / "log.txt").write_text("yoloyard: unknown setting 'batsch'; did you mean 'batch'?\n")
    assert keep(folder, MadeUpClock(1)) == code
    assert (state_of(folder)["state"], state_of(folder)["code"]) == ("failed", code)
    assert state_of(folder)["reason"].endswith(said_last)
    there = backup_of(tmp_path / "backup")  # from which a laptop can see why
    assert b"batsch" in there["job/log.txt"]
    assert json.loads(there["job/keeper.json"])["reason"].endswith(said_last)


def test_a_training_that_the_system_ends_goes_on_from_its_last_save(tmp_path: Path) -> None:
    folder = job_folder(tmp_path / "job", "killed 3\nkilled 6\nruns 9")
    assert keep(folder, MadeUpClock(1)) == 0
    assert starts(folder) == ["", *[f"--resume={folder}/runs/line"] * 2]
    assert state_of(folder)["state"] == "finished"


def test_on_a_new_host_the_job_goes_on_from_its_backup_and_counts_all_hours(
    tmp_path: Path, clock: MadeUpClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "backup").mkdir()
    backup = (tmp_path / "backup").as_uri()
    first = job_folder(tmp_path / "job", "runs 10000", backup=backup, max_hours=10)
    steps(first, preempted)
    assert keep(first, clock) == 143
    state = state_of(first)
    assert (state["state"], state["attempts"]) == ("interrupted", 1)

    monkeypatch.setenv("YOLOYARD_ATTEMPT", "second")
    second = job_folder(tmp_path / "other", "runs 2", backup=backup, max_hours=10)
    assert keep(second, MadeUpClock(1)) == 0
    assert starts(second) == [f"--resume={backup}/line"]
    assert state_of(second)["attempts"] == 2
    assert state_of(second)["seconds"] == pytest.approx(state["seconds"], abs=60) != 0
    assert state_of(second)["cost"] == pytest.approx(2.0 * state_of(second)["seconds"] / 3600, abs=1e-3)

    third = job_folder(tmp_path / "third", "runs 2", backup=backup, max_hours=10, time="2026-12-01T00:00:00Z")
    ledger = json.loads(next((first / "ledger").glob("*.json")).read_text())
    record = json.dumps(ledger | {"id": "long", "seconds": 36000.0}).encode()
    obstore.put(open_store(backup), "job/ledger/long.json", record)
    assert keep(third, MadeUpClock(1)) == 0
    assert state_of(third)["reason"].startswith("max_hours: it has run for 10.")
    assert starts(third) == []


def test_a_host_that_was_lost_before_its_first_checkpoint_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "backup").mkdir()
    backup = (tmp_path / "backup").as_uri()
    first = job_folder(tmp_path / "job", "runs 2", backup=backup)
    Copies(f"{backup}/line", create=True).claim("run-1", "line")  # as a training does before its first step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "start", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            keep(first, MadeUpClock(1))
    monkeypatch.setenv("YOLOYARD_ATTEMPT", "second")
    second = job_folder(tmp_path / "other", "runs 2", backup=backup)
    until(lambda: "job/ledger" in "".join(backup_of(tmp_path / "backup")))
    assert keep(second, MadeUpClock(1)) == 0
    assert starts(second) == [""]
    assert Copies(f"{backup}/line").read_manifests()


def test_another_host_that_went_on_with_the_run_keeps_its_copies(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "backup").mkdir()
    backup = (tmp_path / "backup").as_uri()
    folder = job_folder(tmp_path / "job", "runs 2", backup=backup)
    assert keep(folder, MadeUpClock(1)) == 0
    other = job_folder(tmp_path / "other", "runs 5", backup=f"{(tmp_path / 'copies').as_uri()}")
    (tmp_path / "copies").mkdir()
    assert keep(other, MadeUpClock(1)) == 0
    shutil.rmtree(tmp_path / "backup")
    shutil.copytree(tmp_path / "copies", tmp_path / "backup")
    owner = json.loads((tmp_path / "backup/line/run.json").read_text()) | {"host": "gpu02"}
    (tmp_path / "backup/line/run.json").write_text(json.dumps(owner))
    with pytest.raises(UserError, match="the copies there are those of gpu02 since "):
        send_newest(folder / "runs/line", f"{backup}/line", None, 3, lambda size: None)
    assert len(Copies(f"{backup}/line").read_manifests()) == 1
    shutil.rmtree(tmp_path / "backup/job")
    again = job_folder(folder, "runs 5", backup=backup, time="2026-12-01T00:00:00Z")
    (folder / "runs/line/status.json").unlink()
    keep(again, MadeUpClock(1))
    assert starts(folder)[-1] == f"--resume={backup}/line"
    assert (folder / "runs/.line-first/checkpoints/last/state.json").exists()


def test_a_backup_that_is_away_holds_up_no_keeper_that_has_its_records_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "backup").mkdir()
    folder = job_folder(tmp_path / "job", "runs 10000", backup=(tmp_path / "backup").as_uri(), max_hours=10)
    earlier: dict[str, Any] = {"id": "0", "run": "line", "host": "a", "started": "", "seconds": 36000.0, "nodes": 1}
    earlier |= {"gpus": 1, "price": 2.0, "boot": "", "since": 0}
    obstore.put(open_store((tmp_path / "backup").as_uri()), "job/ledger/0.json", json.dumps(earlier).encode())
    assert keep(folder, MadeUpClock(1)) == 0
    assert state_of(folder)["reason"].startswith("max_hours")

    def fails(self: Records, name: str) -> bytes:
        raise UserError("the server can't be reached")

    monkeypatch.setattr(Records, "_get", fails)
    monkeypatch.setattr(keeper, "RECORDS_SECONDS", 0.1)
    (folder / "keeper.json").write_text(json.dumps(state_of(folder) | {"state": "saving", "over": None}))
    assert keep(folder, MadeUpClock(1)) == 0  # as after a crash: what other hosts have cost is known here
    assert state_of(folder)["reason"].startswith("max_hours")
    nowhere = job_folder(tmp_path / "new", "runs 2", backup=(tmp_path / "backup").as_uri())
    assert keep(nowhere, MadeUpClock(1)) == 3
    assert state_of(nowhere)["reason"] == "the server can't be reached"
    assert starts(nowhere) == []


def test_two_jobs_share_no_backup(tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    backup = (tmp_path / "backup").as_uri()
    assert keep(job_folder(tmp_path / "job", "runs 2", backup=backup), MadeUpClock(1)) == 0
    other = job_folder(tmp_path / "other", "runs 2", backup=backup, name="tea", run="tea")
    assert keep(other, MadeUpClock(1)) == 3
    assert "has the records of the job line: give each job a `backup:` of its own" in state_of(other)["reason"]
    assert json.loads(backup_of(tmp_path / "backup")["job/launch.json"])["name"] == "line"


def test_a_training_that_nothing_can_kill_holds_no_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = job_folder(tmp_path / "job", "hangs 2", idle_minutes=5)
    monkeypatch.setattr(Training, "kill", lambda training: None)  # as one that waits for a broken driver
    clock = MadeUpClock(60)
    clock.holds = lambda: not (folder / "runs/line/status.json").exists()
    assert keep(folder, clock) == 0
    assert state_of(folder)["state"] == "limit"
    running = Training.running(folder)
    assert running is not None
    os.kill(running.pid, signal.SIGKILL)


@pytest.mark.parametrize("where", ["here", "at the backup"])
def test_a_file_stop_ends_the_job_after_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(records, "SECONDS_BETWEEN", 0.05)
    (tmp_path / "backup/job").mkdir(parents=True)
    folder = job_folder(tmp_path / "job", "runs 10000", backup=(tmp_path / "backup").as_uri())
    place = folder if where == "here" else tmp_path / "backup/job"
    steps(folder, lambda: write_soon(place / "stop", b'{"reason": "stopped by ada@laptop"}'))
    assert keep(folder, MadeUpClock(1)) == 0
    assert (state_of(folder)["state"], state_of(folder)["reason"]) == ("stopped", "stopped by ada@laptop")
    assert not (place / "stop").exists()
    assert json.loads((folder / "runs/line/status.json").read_text())["state"] == "interrupted"


def test_time_is_counted_by_a_clock_that_does_not_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = job_folder(tmp_path / "job", "runs 30", max_hours=1)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # a century later
    assert keep(folder, MadeUpClock(1)) == 0
    assert state_of(folder)["state"] == "finished"


def test_the_hosts_of_other_ranks_end_as_that_of_rank_0_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backup/job").mkdir(parents=True)
    facts: dict[str, Any] = {"backup": (tmp_path / "backup").as_uri(), "nodes": 2, "max_cost": 0.01}
    folder = job_folder(tmp_path / "job", "fails 3", **facts)
    monkeypatch.setenv("SKYPILOT_NODE_RANK", "1")
    state = {"launch": "2026-11-30T09:00:00Z", "state": "starting", "over": None, "updated": "2026-11-30T09:00:00Z"}
    (tmp_path / "backup/job/keeper.json").write_text(json.dumps(state))
    over = state | {"state": "limit", "over": "1", "code": 0, "reason": "max_cost: it has cost $4"}
    later = threading.Timer(0.5, lambda: (tmp_path / "backup/job/keeper.json").write_text(json.dumps(over)))
    later.start()
    assert keep(folder, MadeUpClock(1)) == 0
    assert state_of(folder)["state"] == "limit"
    assert backup_of(tmp_path / "backup").keys() == {"job/keeper.json"}  # the records are rank 0's
