"""How well `yoloyard plan` knows the hours of a training on this CPU, after a calibration on another one.

    python benchmarks/plan_hours.py --data demo/data.yaml [--cpu-time] [--keep tests/data/runs_on_a_cpu.json]

Trains each of RUNS, calibrates by each, and prints planned : measured hours of all of them. `--cpu-time` is for a host
that does other work meanwhile: one thread, and the clock of the training is its process's own time. `--keep` writes
what the tests use of the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from yoloyard.common.run_folder import read_run
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import TrainConfig, flat_settings
from yoloyard.planning.calibrate import calibrate
from yoloyard.planning.hours import Images, estimate, is_cpu
from yoloyard.planning.trace import trace_step

FOLDER = Path("runs", "bench", "plan_hours")
RUNS = {  # model, imgsz, batch, epochs; the first is that of `make demo`
    "demo": ("yolo11n", 320, 8, 12),
    "yolov5n-224": ("yolov5n", 224, 16, 3),
    "yolo11s-160": ("yolo11s", 160, 8, 2),
    "yolo11m-128": ("yolo11m", 128, 8, 2),
    "yolo11n-640": ("yolo11n", 640, 8, 1),
}
OWN_CLOCK = "import time; time.perf_counter = time.monotonic = time.process_time; "
MAIN = "from yoloyard.cli.main import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare planned and measured hours of trainings on this CPU.")
    parser.add_argument("--data", type=Path, required=True, help="data.yaml of the demo set")
    parser.add_argument("--cpu-time", action="store_true", help="measure by the process's own time, in one thread")
    parser.add_argument("--keep", type=Path, help="write what the tests use of the runs into this JSON file")
    arguments = parser.parse_args()
    for name in RUNS:
        if not (FOLDER / name / "report.html").exists():
            train(name, arguments.data, arguments.cpu_time)
    if arguments.keep:
        arguments.keep.write_text(json.dumps({name: kept(FOLDER / name) for name in RUNS}, indent=1) + "\n")
    print("planned : measured hours, calibrated by the run of each line\n")
    print(" " * 14, *(f"{name:>14}" for name in ("not at all", *RUNS)))
    for by in RUNS:
        ratios = [ratio(by, by, False), *(ratio(name, by, True) for name in RUNS)]
        print(f"{by:<14}", *(f"{each:14.2f}" for each in ratios), flush=True)


def train(name: str, data: Path, cpu_time: bool) -> None:
    """One run, in a process of its own."""
    model, imgsz, batch, epochs = RUNS[name]
    settings = {"model": model, "imgsz": imgsz, "batch": batch, "epochs": epochs, "data": data, "name": name}
    flags = [f"--{key}={value}" for key, value in {**settings, "project": FOLDER, "device": "cpu"}.items()]
    program = [sys.executable, "-c", (OWN_CLOCK if cpu_time else "") + MAIN, "train", "--no-tensorboard", "--exist-ok"]
    variables = {**os.environ, **({"OMP_NUM_THREADS": "1"} if cpu_time else {})}
    subprocess.run([*program, *flags], check=True, env=variables)


def ratio(name: str, by: str, is_corrected: bool) -> float:
    """Planned over measured hours of a run."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CONFIG_HOME"] = folder  # the user's calibrations stay as they are
        calibration, run = calibrate(FOLDER / by), read_run(FOLDER / name)
    facts = json.loads((FOLDER / name / "environment.json").read_text())
    left_out = ("data", "device", "project", "name")
    config = with_overrides(TrainConfig(), {key: value for key, value in run.settings.items() if key not in left_out})
    classes, precision = len(run.validation["classes"]), calibration.precision
    cost = trace_step(config, classes, config.batch, precision, False, on_cpu=is_cpu(calibration.device))
    images, correction = Images(**facts["samples"]), calibration.correction if is_corrected else None
    return 3600 * estimate(cost, config, images, calibration.device, correction=correction).hours / run.seconds


def kept(folder: Path) -> dict[str, Any]:
    """What decides a plan, and what was measured; nothing of the host's paths or names."""
    run, defaults = read_run(folder), flat_settings(TrainConfig())
    facts = json.loads((folder / "environment.json").read_text())
    left_out = ("data", "project", "name", "device", "exist_ok")
    changed = {key: value for key, value in run.settings.items() if defaults.get(key) != value and key not in left_out}
    measured = ("epoch", "speed", "memory", "threads")
    facts_of = ("versions", "processors", "threads", "device", "accelerator", "precision", "samples")
    return {
        "settings": {"model": run.settings["model"], **changed},
        "records": [{key: record[key] for key in record if key.startswith(measured)} for record in run.records],
        "status": {**json.loads((folder / "status.json").read_text()), "host": "here", "pid": 1},
        "environment": {
            **{name: facts[name] for name in facts_of},
            "machine": {name: facts["machine"][name] for name in ("cpus", "processor", "memory")},
        },
        "classes": len(run.validation["classes"]),
    }


if __name__ == "__main__":
    main()
