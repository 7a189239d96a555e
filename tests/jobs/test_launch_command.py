"""`yoloyard launch`: what it says and keeps, and what it leaves alone. The place is made up."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from user_repository import make_repository

from yoloyard.cli.main import main
from yoloyard.common.errors import UsageError, UserError
from yoloyard.jobs.launched import Launch
from yoloyard.jobs.prepare import Prepared, lock_of, next_run, note_of, read_lock


class Place:
    """A place where jobs run, as `jobs.in_cloud` is one."""

    def __init__(self) -> None:
        self.launched: list[Prepared] = []
        self.failure: BaseException | None = None

    def launch(self, prepared: Prepared, new: bool) -> Launch:
        self.launched.append(prepared)
        if self.failure:
            raise self.failure
        run = next_run(prepared.launch, prepared.launch.run) if new else prepared.launch.run
        return dataclasses.replace(prepared.launch, run=run)

    def describe(self, prepared: Prepared, new: bool) -> str:
        return f"one host on {prepared.launch.on}"


def refuse(job: Path) -> None:
    raise UsageError("--images")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    made: Any = Place()
    monkeypatch.setitem(sys.modules, "yoloyard.jobs.in_cloud", made)
    return made


@pytest.fixture
def job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return make_repository(tmp_path / "one")


def ends_with(*argv: object) -> int:
    """The exit status of a command."""
    try:
        main(list(map(str, argv)))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_launch_is_kept_and_the_next_one_goes_on(
    place: Place, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with("launch", job_file, "--on", "aws", "--price", "2.1") == 0
    said = capsys.readouterr().out
    assert "price: $2.10 an hour of a host (--price)\n" in said
    assert "a is started on aws; yoloyard jobs logs -f" in said
    lock = read_lock(job_file)
    assert lock is not None
    assert (lock.on, lock.run, lock.price, lock.price_source) == ("aws", "a", 2.1, "--price")
    assert note_of("a").read_bytes() == lock_of(job_file).read_bytes()
    job_file.write_text(job_file.read_text().replace("epochs: 3", "epochs: 5"))
    assert ends_with("launch", job_file, "--on", "aws", "--new") == 0
    said = capsys.readouterr().out
    assert "differs from the last launch: train.epochs: 3 -> 5\n" in said
    assert "a-2 is started on aws" in said


def test_a_dry_run_says_what_would_be_made_and_makes_nothing(
    place: Place, job_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yoloyard.cli.plan.plan", lambda job: print(f"plan of {job}"))
    assert ends_with("launch", job_file, "--on", "aws", "--dry-run") == 0
    assert capsys.readouterr().out.endswith(f"plan of {job_file}\none host on aws\n")
    monkeypatch.setattr("yoloyard.cli.plan.plan", refuse)
    assert ends_with("launch", job_file, "--on", "aws", "--dry-run") == 0
    assert "no plan: --images\none host on aws\n" in capsys.readouterr().out
    assert not place.launched
    assert not lock_of(job_file).exists()
    assert not note_of("a").exists()


@pytest.mark.parametrize(("failure", "status"), [(KeyboardInterrupt(), 130), (UserError("no quota"), 1)])
def test_a_launch_that_did_not_succeed_is_noted_so_that_it_can_be_found(
    failure: BaseException, status: int, place: Place, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place.failure = failure
    assert ends_with("launch", job_file, "--on", "aws") == status
    assert "not started, or not wholly: launch it again, or see yoloyard jobs status" in capsys.readouterr().out
    assert note_of("a").exists()
    assert not lock_of(job_file).exists()


def test_a_launch_that_the_place_refuses_leaves_nothing(place: Place, job_file: Path) -> None:
    place.failure = UsageError("no such cloud")
    assert ends_with("launch", job_file, "--on", "aws") == 2
    assert not note_of("a").exists()
    note_of("a").write_text("of the launch before")
    assert ends_with("launch", job_file, "--on", "aws") == 2
    assert note_of("a").read_text() == "of the launch before"


def test_a_limit_of_cost_needs_a_price(place: Place, job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job_file.write_text(job_file.read_text() + "limits: {max_cost: 5}\n")
    assert ends_with("launch", job_file, "--on", "nowhere") == 2
    assert "--price DOLLARS-AN-HOUR" in capsys.readouterr().err
    assert not place.launched
    assert ends_with("launch", job_file, "--on", "shh://me@host", "--price", "2") == 2
    assert "shh://me@host is not an address; it looks like ssh://" in capsys.readouterr().err
    assert ends_with("launch", job_file, "--on", "nowhere", "--price", "-1") == 2
    assert ends_with("launch", job_file, "--on", "nowhere", "--price", "0.4") == 0


def test_wrong_usage_starts_nothing(place: Place, job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job_file.write_text(job_file.read_text() + "limit: {max_cost: 5}\n")
    assert ends_with("launch", job_file, "--on", "aws") == 2
    assert f"{job_file}:8:1: unknown key 'limit'; did you mean 'limits'?" in capsys.readouterr().err
    assert not place.launched
