"""A run is compared with its plan, the ratio is kept for its device, and plans of other runs there use it."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import start
from yoloyard.common.errors import UserError
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.demo.write import write_demo
from yoloyard.planning.calibrate import Calibration, calibrate, correction, keep, path
from yoloyard.planning.figures import Estimate, Precision, StepCost
from yoloyard.planning.gpus import find_gpu
from yoloyard.planning.hours import Correction, Images, estimate
from yoloyard.planning.trace import trace_step

RUNS = json.loads(Path(__file__).parents[1].joinpath("data", "runs_on_a_cpu.json").read_text())  # tests/data/README.md


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrations go to a folder of the test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))


def run_folder(folder: Path, name: str, **changed: Any) -> Path:
    """What the files of a kept run say, with changes of its `records`, `settings`, `environment` or `status`."""
    run = RUNS[name]
    records = changed.get("records", run["records"])
    settings, facts = (run[part] | changed.get(part, {}) for part in ("settings", "environment"))
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "environment.json").write_text(json.dumps(facts))
    (folder / "status.json").write_text(json.dumps(run["status"] | changed.get("status", {})))
    (folder / "last_validation.json").write_text(json.dumps({"classes": list(range(run["classes"]))}))
    return folder


@functools.cache
def step_of(name: str) -> StepCost:
    """A step of a kept run."""
    config = with_overrides(TrainConfig(), RUNS[name]["settings"])
    return trace_step(config, RUNS[name]["classes"], config.batch, "amp", False, on_cpu=True)


def planned(name: str, calibration: Calibration) -> Estimate:
    """The plan of a kept run, on the device of the calibration."""
    config, device = with_overrides(TrainConfig(), RUNS[name]["settings"]), calibration.device
    by = correction(device, calibration.precision)
    return estimate(step_of(name), config, Images(400, 100, 320 * 320, 320 * 320), device, cores=2, correction=by)


@pytest.mark.slow
def test_hours_of_the_demo_are_known_within_30_percent_from_a_run_of_another_network(tmp_path: Path) -> None:
    calibration = calibrate(run_folder(tmp_path / "run", "yolov5n-224"))
    kept = keep(calibration)
    assert kept == path() == tmp_path / "settings" / "yoloyard" / "calibrations.json"

    found = planned("demo", calibration)

    assert found.kind == "measured"
    assert found.hours * 3600 == pytest.approx(RUNS["demo"]["status"]["seconds"], rel=0.3)
    text = "\n".join(calibration.lines())
    assert "CPU AMD EPYC (avx512_bf16), 1 thread, amp" in text
    assert all(what in text for what in ("planned", "measured", "ratio", "images/s", "memory, GB", "run, hours"))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_calibrated_plan_repeats_its_run_and_was_near_before(tmp_path: Path, name: str) -> None:
    calibration = calibrate(run_folder(tmp_path / "run", name))
    modelled = planned(name, calibration)
    keep(calibration)
    measured = planned(name, calibration)
    seconds = RUNS[name]["status"]["seconds"]
    assert (modelled.kind, measured.kind) == ("modelled", "measured")
    assert modelled.hours * 3600 == pytest.approx(seconds, rel=0.25)
    assert measured.hours * 3600 == pytest.approx(seconds, rel=0.05)  # medians of epochs leave the rest


def of(gpu: str, precision: Precision, step: float) -> Calibration:
    """A calibration by a run that took `step` times as long as planned."""
    return Calibration(Path("run"), find_gpu(gpu), precision, {}, Correction(step=step, run="run"))


def test_a_correction_is_kept_for_its_device_and_precision_alone() -> None:
    keep(of("T4", "amp", 1.5))
    keep(of("L4", "float32", 1.25))
    keep(of("L4", "float32", 1.75))
    assert correction(find_gpu("T4"), "amp") == Correction(step=1.5, run="run")
    assert correction(find_gpu("L4"), "float32") == Correction(step=1.75, run="run")
    assert correction(find_gpu("L4"), "amp") is None
    assert correction(find_gpu("L40S"), "float32") is None


def test_what_can_not_be_compared_is_refused_with_its_reason(tmp_path: Path) -> None:
    def refused(name: str, **changed: Any) -> str:
        folder = run_folder(tmp_path / name, "demo", **changed)
        with pytest.raises(UserError) as caught:
            calibrate(folder)
        return str(caught.value)

    with pytest.raises(UserError, match="nowhere is not a run folder"):
        calibrate(tmp_path / "nowhere")
    assert "no whole epoch yet" in refused("begun", records=[])
    assert "several hosts" in refused("hosts", settings={"nodes": "2"})
    assert "ran on mps" in refused("mps", environment={"device": "mps"})
    assert "unknown GPU 'Radeon VII'" in refused("other", environment={"accelerator": "Radeon VII"})
    assert "lacks 'cpus': an older version wrote it" in refused("old", environment={"machine": {}})
    assert "metrics.jsonl:1 is no line of figures" in refused("figures", records=["corrupt", *RUNS["demo"]["records"]])
    assert "environment.json is damaged" in refused("facts", environment={"samples": None})
    assert "lacks 'speed/images_per_second'" in refused("figure", records=[{"epoch": 1}])


def test_a_damaged_file_of_calibrations_is_named_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "settings" / "yoloyard" / "calibrations.json"
    file.parent.mkdir(parents=True)
    for text in ("{", "[]", json.dumps({"T4": {"amp": {"step": -1}}})):
        file.write_text(text)
        with pytest.raises(UserError, match=r"calibrations\.json is damaged .*: remove it, then calibrate again"):
            correction(find_gpu("T4"), "amp")
    file.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        keep(of("T4", "amp", 1.5))
    assert file.read_text() == "{"
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=r"cannot read .*calibrations\.json: Is a directory"):
        correction(find_gpu("T4"), "amp")


@pytest.mark.slow
def test_a_run_of_today_can_be_compared_with_its_plan(tmp_path: Path) -> None:
    words = ["--model", "yolov5n", "--imgsz", "64", "--batch", "8", "--epochs", "2", "--device", "cpu"]
    data = write_demo(tmp_path / "data", train=24, val=4, size=96)
    done = start("train", "--data", data, *words, "--no-tensorboard", "--project", tmp_path, "--name", "run")
    output, _ = done.communicate(timeout=300)
    assert done.returncode == 0, output

    calibration = calibrate(tmp_path / "run")

    assert {*calibration.rows} >= {"throughput, images/s", "memory, GB", "validation and rest, s", "run, hours"}
    keep(calibration)
    assert correction(calibration.device, calibration.precision) == calibration.correction
