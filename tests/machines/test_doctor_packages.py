"""The doctor on packages: copies of an environment that is really built, each broken in one way."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from yoloyard.machines.doctor import Finding
from yoloyard.machines.doctor import packages as judge
from yoloyard.machines.environment import packages

NO_GPU: dict[str, Any] = {"gpus": [], "driver": None}
GPU = {"gpus": [{"error": None, "name": "NVIDIA A10", "capability": "8.6"}], "driver": "570.86.15"}

NUMPY = {
    "numpy/__init__.py": """
__version__ = "2.4.6"
uint8 = "uint8"
class Array:
    shape = (8, 8, 3)
    def sum(self): return 3
def ones(n): return Array()
zeros = lambda *a: Array()
"""
}
TORCH = {
    "torch/__init__.py": """
from torch import version
__version__ = version.__version__
class _Cudnn:
    @staticmethod
    def version(): return None
class backends: cudnn = _Cudnn
def from_numpy(array): return 1
def tensor(values): return values
""",
    "torch/version.py": "__version__ = '2.8.0+cpu'\ncuda: object = None\nhip: object = None\n",
}
CV2 = {
    "cv2/__init__.py": """
import numpy
def resize(image, size): return image
def imencode(kind, image): return True, image
def imdecode(data, kind): return data
""",
    "cv2/version.py": 'opencv_version = "5.0.0.93"\ncontrib = False\nheadless = True\n',
}


def wheel(folder: Path, name: str, version: str, files: dict[str, str], requires: tuple[str, ...] = ()) -> Path:
    """A built distribution of these files, as pip takes it."""
    stem = f"{name.replace('-', '_')}-{version}"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {text}" for text in requires]
    written = {
        **files,
        f"{stem}.dist-info/METADATA": "\n".join(lines) + "\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, text in written.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text.encode())}")
    rows.append(f"{stem}.dist-info/RECORD,,")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in written.items():
            archive.writestr(path, text)
        archive.writestr(f"{stem}.dist-info/RECORD", "\n".join(rows) + "\n")
    return file


class Environment:
    """A copy of the healthy environment, with small packages that have the names and metadata of large ones."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder, self.wheels = folder, wheels
        self.python = folder / "bin" / "python"
        self.site = next(folder.glob("lib/python*/site-packages"))

    def add(self, name: str, version: str, files: dict[str, str], requires: tuple[str, ...] = ()) -> None:
        """Unpack such a package, as pip does, after another version of the same name is removed."""
        self.remove(name)
        with zipfile.ZipFile(wheel(self.wheels, name, version, files, requires)) as archive:
            archive.extractall(self.site)

    def remove(self, name: str) -> None:
        """Remove the files of a package, as its RECORD lists them, if it is there."""
        for record in self.site.glob(f"{name.replace('-', '_')}-*.dist-info/RECORD"):
            for path in [self.site / line.split(",")[0] for line in record.read_text().splitlines()]:
                path.unlink()
                shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
            record.parent.rmdir()

    def findings(self, nvml: dict[str, Any] = NO_GPU) -> dict[str, Finding]:
        """The findings by their names."""
        found = judge.check({"packages": packages.gather(self.python), "nvml": nvml})
        return {each.check: each for each in found}


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment into which pip has installed the packages, to be copied."""
    folder, wheels = tmp_path_factory.mktemp("healthy") / "venv", tmp_path_factory.mktemp("wheels")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    files = [
        wheel(wheels, "numpy", "2.4.6", NUMPY),
        wheel(wheels, "torch", "2.8.0", TORCH),
        wheel(wheels, "opencv-python-headless", "5.0.0.93", CV2),
        wheel(wheels, "safetensors", "1.8.0", {"safetensors/__init__.py": "__version__ = '1.8.0'\n"}),
        wheel(wheels, "matplotlib", "1.8.0", {"matplotlib/__init__.py": "__version__ = '1.8.0'\n"}),
    ]
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q", "--no-compile"]
    options = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *options, *map(str, files)], check=True)
    return folder


@pytest.fixture
def environment(healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(healthy, tmp_path / "venv", symlinks=True)
    return Environment(tmp_path / "venv", tmp_path / "wheels")


def test_a_healthy_environment_has_nothing_but_ok(environment: Environment) -> None:
    found = environment.findings()
    assert {name: each.verdict for name, each in found.items()} == dict.fromkeys(
        ("torch-import", "opencv-import", "numpy-abi", "requirements"), "ok"
    )
    assert "2.8.0+cpu" in found["torch-import"].evidence


def test_a_wheel_for_cpus_on_a_machine_with_a_gpu(environment: Environment) -> None:
    finding = environment.findings(GPU)["torch-cpu-only"]
    assert finding.verdict == "problem"
    assert "NVIDIA A10" in finding.evidence
    assert "https://download.pytorch.org/whl/cu1" in finding.remedy
    environment.add("torch", "2.8.0", {**TORCH, "torch/version.py": "__version__ = '2.8.0+cu128'\ncuda = '12.8'\n"})
    assert "torch-cpu-only" not in environment.findings(GPU)


def vision(version: str, works: bool = True) -> dict[str, str]:
    body = "return boxes" if works else "raise RuntimeError('operator torchvision::nms does not exist')"
    return {
        "torchvision/__init__.py": f"class ops:\n    @staticmethod\n    def nms(boxes, scores, iou): {body}\n",
        "torchvision/version.py": f"__version__ = {version!r}\n",
    }


@pytest.mark.parametrize(
    ("version", "works", "verdict"),
    [
        ("0.23.0+cpu", True, "ok"),
        ("0.23.0", True, "ok"),  # its build isn't told
        ("0.23.0+cu128", True, "problem"),
        ("0.22.1+cpu", True, "warning"),
        ("0.22.1+cpu", False, "problem"),
    ],
)
def test_torchvision_of_another_build(environment: Environment, version: str, works: bool, verdict: str) -> None:
    environment.add("torchvision", version.split("+")[0], vision(version, works), ("torch>=2.14",))
    found = environment.findings()
    assert found["requirements"].verdict == "ok"  # or its remedy would be another torch
    finding = found["torchvision-build"]
    assert finding.verdict == verdict
    assert version in finding.evidence
    if verdict != "ok":
        assert "torchvision==0.23.*" in finding.remedy
        assert "whl/cpu" in finding.remedy
    if not works:
        assert "operator torchvision::nms does not exist" in finding.evidence


def test_two_opencv_packages(environment: Environment) -> None:
    windows = {**CV2, "cv2/version.py": CV2["cv2/version.py"].replace("headless = True", "headless = False")}
    environment.add("opencv-python", "5.0.0.93", windows)
    finding = environment.findings()["opencv-several"]
    assert finding.verdict == "warning"  # it works, until one of them is renewed or removed
    assert "with windows" in finding.evidence
    assert "files of opencv-python-headless 5.0.0.93" in finding.evidence
    assert "uninstall -y opencv-python" in finding.remedy

    pip = [sys.executable, "-m", "pip", "--python", str(environment.python), "uninstall", "-qy", "opencv-python"]
    subprocess.run(pip, check=True)  # which takes the shared files away
    finding = environment.findings()["opencv-import"]
    assert finding.verdict == "problem"
    assert "its folder cv2 is not there" in finding.evidence


def test_a_library_of_the_system_is_missing(environment: Environment) -> None:
    broken = "import ctypes\nctypes.CDLL('libGL.so.1-of-no-system')\n"
    environment.remove("opencv-python-headless")
    environment.add("opencv-python", "5.0.0.93", {**CV2, "cv2/__init__.py": broken})
    finding = environment.findings()["opencv-libgl"]
    assert finding.verdict == "problem"
    assert "libGL.so.1" in finding.evidence
    assert "uninstall -y opencv-python && " in finding.remedy
    assert "opencv-python-headless" in finding.remedy
    assert "libgl1" in finding.remedy


@pytest.mark.parametrize(
    ("numpy", "text", "remedy"),
    [
        ("2.4.6", "numpy.dtype size changed, may indicate binary incompatibility. "
         "Expected 96 from C header, got 88 from PyObject", "'numpy<2'"),
        ("1.26.4", "module compiled against ABI version 0x2000009 but this version of numpy is 0x1000009",
         "--upgrade numpy"),
    ],
)  # fmt: skip
def test_a_module_compiled_for_another_numpy(environment: Environment, numpy: str, text: str, remedy: str) -> None:
    environment.add("numpy", numpy, {"numpy/__init__.py": NUMPY["numpy/__init__.py"].replace("2.4.6", numpy)})
    environment.add("matplotlib", "1.8.0", {"matplotlib/__init__.py": f"raise ValueError({text!r})\n"})
    found = environment.findings()
    assert found["numpy-abi"].verdict == "problem"
    assert "matplotlib 1.8.0 was compiled for another NumPy" in found["numpy-abi"].evidence
    assert remedy in found["numpy-abi"].remedy
    assert "package-import" not in found  # one failure, one finding


def test_a_warning_of_numpy_is_heard_where_the_import_goes_through(environment: Environment) -> None:
    text = "A module that was compiled using NumPy 1.x cannot be run in NumPy 2.4.6"
    package = TORCH["torch/__init__.py"] + f"import os\nos.write(2, {text.encode()!r})\n"
    environment.add("torch", "2.8.0", {**TORCH, "torch/__init__.py": package})
    assert environment.findings()["numpy-abi"].verdict == "problem"


def test_a_crash_is_a_finding_and_the_rest_is_still_looked_at(environment: Environment) -> None:
    environment.add("torch", "2.8.0", {**TORCH, "torch/__init__.py": "import os\nos.abort()\n"})
    found = environment.findings()
    assert found["torch-import"].verdict == "problem"
    assert "SIGABRT" in found["torch-import"].evidence
    assert "package-import" not in found  # what is tried after it works


def cuda_wheels(environment: Environment, cudnn: str = "9.10.2.21") -> None:
    version = {"torch/version.py": "__version__ = '2.8.0+cu128'\ncuda: object = '12.8'\n"}
    wanted = (
        "nvidia-cudnn-cu12==9.10.2.21",
        'nvidia-nccl-cu12==2.27.3; platform_system == "Linux"',
        "never; extra == 'x'",
    )
    loads = """
import ctypes, os
class version:
    __version__, cuda, hip = "2.8.0+cu128", "12.8", None
class distributed:
    is_nccl_available = staticmethod(lambda: False)
class cuda:
    is_available = staticmethod(lambda: False)
"""
    package = TORCH["torch/__init__.py"].replace("from torch import version\n", loads)
    environment.add("torch", "2.8.0", {**TORCH, **version, "torch/__init__.py": package}, wanted)
    environment.add("nvidia-cudnn-cu12", cudnn, {"nvidia/cudnn/lib/libcudnn.so.9": "the wheel's"})
    environment.add("nvidia-nccl-cu12", "2.27.3", {"nvidia/nccl/lib/libnccl.so.2": "the wheel's"})


def test_cuda_wheels_that_torch_does_not_ask_for(environment: Environment) -> None:
    cuda_wheels(environment)
    assert environment.findings()["requirements"].verdict == "ok"
    cuda_wheels(environment, cudnn="9.1.0.70")
    environment.remove("nvidia-nccl-cu12")
    finding = environment.findings()["cuda-wheels"]
    assert finding.verdict == "problem"
    assert "torch 2.8.0 asks for nvidia-cudnn-cu12==9.10.2.21, 9.1.0.70 is installed" in finding.evidence
    assert "install --no-deps 'nvidia-nccl-cu12==2.27.3' 'nvidia-cudnn-cu12==9.10.2.21'" in finding.remedy


def test_a_cudnn_on_the_library_path(environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_wheels(environment)
    other, harmless = tmp_path / "other" / "lib", tmp_path / "harmless"
    for folder in (other, harmless):
        folder.mkdir(parents=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{harmless}")
    assert environment.findings()["library-path"].verdict == "ok"
    (other / "libcudnn.so.9.1.0").write_text("another")
    (other / "libcudnn.so.9").symlink_to("libcudnn.so.9.1.0")
    (harmless / "libcudnn.so.8").write_text("of a name that torch doesn't look for")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{other}:{harmless}")
    finding = environment.findings()["library-path"]
    assert finding.verdict == "problem"
    assert "9.1.0; the wheel's is 9.10.2.21" in finding.evidence
    assert finding.remedy == f"export LD_LIBRARY_PATH={harmless}"


def test_half_removed_and_doubled_packages(environment: Environment) -> None:
    (environment.site / "~orch").mkdir()
    stale = environment.site / "numpy-2.1.0.dist-info"
    stale.mkdir()
    (stale / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.1.0\n")
    (environment.site / "safetensors" / "__init__.py").unlink()
    found = environment.findings()
    assert found["package-leftovers"].remedy == f"rm -r '{environment.site / '~orch'}'"
    assert f"rm -r '{stale}' && " in found["package-twice"].remedy
    assert "numpy==2.4.6" in found["package-twice"].remedy
    assert found["package-files"].title == "safetensors is whole"
    assert "--no-deps safetensors==1.8.0" in found["package-files"].remedy


def test_another_torch_comes_first(environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other" / "torch"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text(TORCH["torch/__init__.py"])
    (other / "version.py").write_text(TORCH["torch/version.py"].replace("2.8.0", "2.1.0"))
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    finding = environment.findings()["package-shadowed"]
    assert finding.verdict == "problem"
    assert f"torch 2.1.0+cpu of {other.parent} is used (PYTHONPATH puts it first), not 2.8.0+cpu" in finding.evidence
    assert finding.remedy == "unset PYTHONPATH"


def test_a_requirement_of_a_requirement(environment: Environment) -> None:
    environment.add("torch", "2.8.0", TORCH, ("sympy>=1.13", "numpy<2.0"))
    finding = environment.findings()["requirements"]
    assert finding.verdict == "problem"  # something is missing
    assert "torch 2.8.0 asks for sympy>=1.13, which is not installed" in finding.evidence
    assert "torch 2.8.0 asks for numpy<2.0, 2.4.6 is installed" in finding.evidence


def test_no_torch_and_no_python(environment: Environment) -> None:
    environment.remove("torch")
    assert environment.findings()["torch-import"].remedy.endswith("-m pip install torch")
    found = judge.check({"packages": packages.gather(environment.folder / "nowhere"), "nvml": NO_GPU})
    assert [(each.check, each.verdict) for each in found] == [("packages", "problem")]


def test_modules_beside_the_shell_are_not_mistaken_for_packages(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError('of the working directory')\n")
    monkeypatch.chdir(tmp_path)
    assert environment.findings()["numpy-abi"].verdict == "ok"
    assert os.listdir(tmp_path).count("__pycache__") == 0
