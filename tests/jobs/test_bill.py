"""What a run has cost and given, by its job and its records."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from keeping import LAUNCH

from commands import TINY_NETWORK
from yoloyard.common.run_folder import read_run
from yoloyard.jobs.bill import bill, rows, write_bill
from yoloyard.jobs.cheaper import add_cheaper
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


@pytest.mark.slow
def test_a_cheaper_gpu_is_named_once_the_job_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("SKY_RUNTIME_DIR", str(tmp_path / "none"))
    run = run_in(tmp_path / "line", "NVIDIA H100 80GB HBM3")
    (run / "config.yaml").write_text(json.dumps({"model": TINY_NETWORK, "imgsz": 64, "batch": 16, "epochs": 2}))
    machine = {"cpus": {"usable": 16}}
    facts = {"precision": "float32", "machine": machine, "samples": {"train": 999, "val": 99}}
    (run / "environment.json").write_text(json.dumps(facts))
    launch = Launch(**{**LAUNCH, "gpu": "H100", "gpus": 1, "price": 3.0})
    write_bill(run, launch, [attempt(1, 1300)], "finished", "")
    add_cheaper(read_run(run))
    assert said == ["what a cheaper GPU would have given is not known: there are no prices of other offers here: "
                    "yoloyard plan says how to get them"]  # fmt: skip
    assert bill(read_run(run))["cheaper"] is None
    (tmp_path / "yoloyard").mkdir()
    today = datetime.now(UTC).date().isoformat()
    lines = ["provider,gpu,price,date", f"mine,T4,0.2,{today}", f"mine,A100,9.0,{today}"]
    (tmp_path / "yoloyard/prices.csv").write_text("\n".join(lines) + "\n")
    add_cheaper(read_run(run))
    found = bill(read_run(run))["cheaper"]
    assert (found["gpu"], found["provider"], found["kind"]) == ("T4", "mine", "modelled")
    assert found["instead_of"] == pytest.approx(1.0)  # 1200 s
    assert found["cost"] < 1.0
    assert found["cost"] == pytest.approx(0.2 * found["hours"])
    assert rows(bill(read_run(run)))["on a cheaper GPU"].startswith(f"${found['cost']:.2f} instead of $1.00, in ")
