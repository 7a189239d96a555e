"""The keeper of a job: when it ends a training, what it saves, and what it counts."""

import json
from pathlib import Path
from typing import Any

import obstore
import pytest
from keeping import MADE_UP, MadeUpClock, job_folder, starts, state_of

from yoloyard.jobs.node import keeper, training
from yoloyard.jobs.node.keeper import keep
from yoloyard.jobs.node.training import Training
from yoloyard.storage.address import open_store
from yoloyard.storage.copies import Copies


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The training is made up, and the variables of this process are those of no cluster."""
    monkeypatch.setattr(training, "COMMAND", MADE_UP)
    monkeypatch.setattr(keeper, "LOOK_SECONDS", 2.0)
    for name in (*keeper.RANKS, "YOLOYARD_ATTEMPT"):
        monkeypatch.delenv(name, raising=False)


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


def backup_of(folder: Path) -> dict[str, Any]:
    """The records of the job at its backup."""
    store = open_store(folder.as_uri())
    paths = [each["path"] for chunk in obstore.list(store, "job") for each in chunk]
    return {path: bytes(obstore.get(store, path).bytes()) for path in paths}


def test_a_job_that_finishes(tmp_path: Path, said: list[str]) -> None:
    folder = job_folder(tmp_path / "job", "runs 3")
    assert keep(folder, MadeUpClock(0)) == 0
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
    records = backup_of(tmp_path / "backup")
    assert json.loads(records["job/keeper.json"])["state"] == "limit"
    assert json.loads(records["job/launch.json"])["max_hours"] == limit.get("max_hours")
    assert keep(folder, clock) == 0  # the same launch is not begun again
    assert len(starts(folder)) == 1
