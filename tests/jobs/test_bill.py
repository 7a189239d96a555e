"""What a run has cost and given, by its job and its records."""

import json
from pathlib import Path
from typing import Any

import pytest
from keeping import LAUNCH

from yoloyard.common.run_folder import read_run
from yoloyard.jobs.bill import bill, rows, write_bill
from yoloyard.jobs.launched import Launch
from yoloyard.jobs.node.ledger import Attempt


def run_in(folder: Path, accelerator: str | None = "NVIDIA L4") -> Path:
    """A run folder of two epochs of 300 s each, of which a third was waiting, and 600 s of validation."""
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps({"accelerator": accelerator}))
    (folder / "config.yaml").write_text(json.dumps({"epochs": 2, "processes": 2}))
    speed = {"speed/seconds": 300.0, "speed/waiting_fraction": 1 / 3, "speed/images_per_second": 90.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"epoch": n, **speed}) + "\n" for n in (1, 2)))
    status = {"state": "finished", "reason": "", "host": "a", "pid": 1, "started": "", "updated": "", "epoch": 2}
    (folder / "status.json").write_text(json.dumps(status | {"seconds": 1200, "epochs": 2, "step": 9, "steps": 9}))
    return folder


def attempt(number: int, seconds: float) -> Attempt:
    """On two hosts of two GPUs, $3 an hour each."""
    return Attempt(str(number), "line", "gpu01", "2026-11-30", seconds, 2, 2, 3.0, "", 0)


def test_a_job_is_billed_by_its_attempts(tmp_path: Path) -> None:
    run = run_in(tmp_path / "line")
    write_bill(run, Launch(**LAUNCH), [attempt(1, 600), attempt(2, 1200)], "finished", "")
    found = bill(read_run(run))
    assert found["cost"] == pytest.approx(3.0)  # half an hour of two hosts
    assert found["gpu_hours"] == pytest.approx(2.0)
    assert found["waiting_seconds"] == pytest.approx(200)
    assert found["utilisation"] == pytest.approx(1000 / 1800)
    assert rows(found) == {
        "time waiting for data": "3.3 min (17%)",
        "GPU-hours": "2.00",
        "cost": "$3.00 (2 attempts; $2 an hour of a host: --price)",
        "utilisation": "56% of the time that was paid for",
    }


def test_a_run_that_was_no_job_has_hours_and_no_cost(tmp_path: Path) -> None:
    found = bill(read_run(run_in(tmp_path / "line")))
    assert (found["cost"], found["attempts"], found["gpu_hours"]) == (None, None, pytest.approx(2 / 3))
    assert rows(found) == {"time waiting for data": "3.3 min (17%)", "GPU-hours": "0.67"}
    on_cpu = bill(read_run(run_in(tmp_path / "cpu", accelerator=None)))
    assert on_cpu["gpu_hours"] is None


def test_damaged_records_of_a_job_are_left_out(tmp_path: Path) -> None:
    run = run_in(tmp_path / "line")
    (run / "job.json").write_text('{"attempts": [')
    assert bill(read_run(run))["cost"] is None
