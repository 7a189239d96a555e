"""The classic broken environments with the real packages of PyPI; needs an index that pip can reach."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from yoloyard.machines.doctor import Finding
from yoloyard.machines.doctor import packages as judge
from yoloyard.machines.environment import packages

pytestmark = pytest.mark.slow
NO_GPU: dict[str, Any] = {"gpus": [], "driver": None}


class Environment:
    """A virtual environment that sees the packages of this Python behind its own."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        self.site = next(folder.glob("lib/python*/site-packages"))
        (self.site / "behind.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))

    def pip(self, *words: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
            pytest.skip(f"pip finds no {words[-1]} here")
        assert done.returncode == 0, done.stderr

    def install(self, *wanted: str) -> None:
        self.pip("install", "-q", "--no-deps", "--ignore-installed", "--disable-pip-version-check", *wanted)

    def findings(self) -> dict[str, Finding]:
        found = judge.check({"packages": packages.gather(self.python), "nvml": NO_GPU})
        return {each.check: each for each in found}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    return Environment(tmp_path / "venv")


def test_the_environment_is_healthy_before(environment: Environment) -> None:
    found = environment.findings()
    assert [found[name].verdict for name in ("torch-import", "opencv-import", "numpy-abi")] == ["ok"] * 3
    assert "torchvision-build" not in found


def test_two_opencv(environment: Environment) -> None:
    environment.install("opencv-python-headless")
    environment.install("opencv-python")
    finding = environment.findings()["opencv-several"]
    assert "overwritten or missing" in finding.evidence
    assert "with windows" in finding.evidence
    # Removed in the way that people try first: the files of both are gone, and the remedy brings one back.
    environment.pip("uninstall", "-qy", "opencv-python")
    assert not (environment.site / "cv2" / "__init__.py").exists()
    environment.install("opencv-python-headless")
    assert environment.findings()["opencv-import"].verdict == "ok"


def test_opencv_with_windows_on_a_machine_without(environment: Environment) -> None:
    environment.install("opencv-python")
    attempt = packages.import_all(str(environment.python), ["cv2"])["cv2"]
    found = environment.findings()
    if attempt["error"] is None:  # this machine has libGL
        assert "opencv-libgl" not in found
        return
    finding = found.get("opencv-libgl") or found["opencv-several"]  # the one behind shows up as well
    assert finding.verdict == "problem"
    assert "lib" in attempt["error"]
    assert "opencv-python-headless" in finding.remedy


def test_torchvision_of_another_torch(environment: Environment) -> None:
    environment.install("torchvision")
    finding = environment.findings()["torchvision-build"]
    assert finding.verdict == "problem"
    assert "whl/cpu" in finding.remedy or "+cpu" not in finding.evidence


def test_a_module_compiled_for_numpy_1(environment: Environment) -> None:
    environment.install("matplotlib==3.8.2", "contourpy==1.2.0")  # the last ones from before NumPy 2
    finding = environment.findings()["numpy-abi"]
    assert finding.verdict == "problem"
    assert "numpy<2" in finding.remedy
