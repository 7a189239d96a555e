"""benchmarks/gpu.py runs with torch, NumPy, OpenCV, Pillow, tifffile, psutil and safetensors; here, its rehearsal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NOT_THERE = ("rich", "cyclopts", "yaml", "matplotlib", "pytest", "hypothesis")


@pytest.mark.slow
def test_it_needs_only_packages_of_numbers_and_images(tmp_path: Path) -> None:
    program = f"""
import dataclasses, importlib.util, pathlib, sys
for name in {NOT_THERE!r}:
    sys.modules[name] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in {NOT_THERE!r} else find(name)
import gpu
sizes = dataclasses.replace(
    gpu.REHEARSAL, models=("yolo11n",), batches=(1,), compiled=0, checks=0, items=0, runs=0
)
print(gpu.table_of(gpu.measure_all(gpu.torch.device("cpu"), sizes, pathlib.Path("gpu.json"))))
"""
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| yolo11n | 1 | float32 |" in done.stdout
    assert "| yolo11n | 2 | amp + compile | no time was left |" in done.stdout
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert 0 <= results["demo"]["figures"]["map50_95"] <= 1
    assert [row["workers"] for row in results["loader"]][:2] == [0, 1]


@pytest.mark.slow
def test_the_rehearsal_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    subprocess.run([sys.executable, str(BENCHMARKS / "gpu.py"), "--rehearse", "--out", str(out)], check=True)
    results = json.loads(out.read_text())
    assert results["checks"]
    assert all(check["holds"] for check in results["checks"])
    assert {row["model"] for row in results["steps"]} == {"yolo11n", "yolov5s", "yolo11m", "yolo11x"}
    assert [row["batch"] for row in results["compiled"]] == [2] * 4 + [1] * 4
