"""`yoloyard job init`: a job file that `launch` reads, from a run or from what lies there."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from yoloyard.common.errors import UsageError, UserError
from yoloyard.config.settings import TrainConfig, flat_settings
from yoloyard.jobs.job_file import Resources, read_job
from yoloyard.jobs.job_init import write_job


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(settings: dict[str, Any], environment: dict[str, Any]) -> Path:
    """A run folder with what a job file is made from."""
    run = Path("runs", "factory")
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(flat_settings(TrainConfig()) | settings), encoding="utf-8")
    (run / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    return run


def test_without_a_run_the_data_set_that_lies_here_is_taken(here: Path) -> None:
    (here / "set").mkdir()
    (here / "set" / "data.yaml").touch()
    write_job(None, Path("job.yaml"))
    job = read_job(Path("job.yaml"))
    assert job.train == {"data": f"{here}/set/data.yaml", "model": "yolo11n", "epochs": 100, "imgsz": 640}
    assert (job.resources, job.image, job.limits.max_hours) == (Resources(), None, 24.0)


def test_of_a_run_all_settings_that_are_not_the_defaults_are_taken(here: Path) -> None:
    Path("set").mkdir()
    Path("set", "data.yaml").touch()
    Path("net.py").touch()
    run = make_run(
        {"data": "set/data.yaml", "model": "net.py:Net", "epochs": 7, "device": "0,1", "name": "factory",
         "backup": "s3://b/x", "lr0": 0.002, "notify": None},
        {"versions": {"torch": "2.8.0+cu128"}, "cuda": "12.8", "accelerator": "NVIDIA A100-SXM4-80GB"},
    )  # fmt: skip
    Path("jobs").mkdir()
    write_job(run, Path("jobs", "again.yaml"))
    job = read_job(Path("jobs", "again.yaml"))
    data, model = f"{here}/set/data.yaml", f"{here}/net.py:Net"
    assert job.train == {"data": data, "model": model, "epochs": 7, "lr0": 0.002}
    assert job.resources == Resources(gpu="A100-80GB", count=2)
    assert (job.name, job.image, job.backup) == ("again", "torch2.8-cu128", None)


def test_a_run_on_a_cpu_stays_on_one(here: Path) -> None:
    run = make_run({"data": "data.yaml"}, {"versions": {"torch": "2.13.0"}, "cuda": None, "accelerator": None})
    write_job(run, Path("job.yaml"))
    job = read_job(Path("job.yaml"))
    assert (job.resources.gpu, job.image) == ("none", "cpu")


def test_a_file_that_is_there_is_never_replaced(here: Path) -> None:
    Path("job.yaml").write_text("mine")
    with pytest.raises(UsageError, match=r"job\.yaml is there already: --out names another file"):
        write_job(None, Path("job.yaml"))
    assert Path("job.yaml").read_text() == "mine"


def test_what_is_no_run_is_said(here: Path) -> None:
    with pytest.raises(UserError, match="runs is no run folder: it has no config"):
        write_job(Path("runs"), Path("job.yaml"))
    with pytest.raises(UserError, match="cannot write nowhere/job"):
        write_job(None, Path("nowhere", "job.yaml"))


def test_a_gpu_that_no_table_knows_is_left_open(here: Path) -> None:
    run = make_run({"data": "data.yaml"}, {"versions": {"torch": "2.8.0"}, "cuda": "12.8", "accelerator": "X9"})
    write_job(run, Path("job.yaml"))
    job = read_job(Path("job.yaml"))
    assert (job.resources.gpu, job.image) == (None, "torch2.8-cu128")
