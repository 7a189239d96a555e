"""A machine that is made up at its boundary: NVML and the clock in C, a wheel of torch, /proc, /sys, /dev as files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "src"
PROGRAM = """
import json, sys
from pathlib import Path
from yoloyard.yard.doctor.run import examine
print(json.dumps(examine(Path(sys.argv[2]), quick=True, root=Path(sys.argv[1])).as_dict()))
"""


@pytest.fixture(scope="session")
def fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the made-up libnvidia-ml.so.1."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True)
    return library.parent


class Machine:
    """A healthy machine with one GPU, until a test changes something; `findings()` examines it."""

    def __init__(self, folder: Path, nvml: Path) -> None:
        self.root, self.wheel, self.nvml = folder / "root", folder / "wheel", nvml
        self.environment = {"NVML_DRIVER": "570.86.15", "NVML_CUDA": "12080", "CLOCK_STATE": "0"}
        self.gpu()
        self.torch("2.8.0+cu128", "12.8", "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120")
        self.write("proc/self/status", "Cpus_allowed_list:\t0-15\n")
        self.write("proc/self/cgroup", "0::/user.slice\n")
        self.write("proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 60000000 kB\n")
        self.limits()
        self.shared_memory("16777216k")
        self.write("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
        self.write("sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
        self.write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Fri\n")
        self.write("dev/nvidia0")
        self.write("usr/bin/docker")
        self.write("usr/bin/nvidia-ctk")
        self.write("etc/docker/daemon.json", '{"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}}')

    def write(self, path: str, text: str = "") -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def remove(self, path: str) -> None:
        if (self.root / path).is_dir():
            shutil.rmtree(self.root / path)
        else:
            (self.root / path).unlink()

    def gpu(self, capability: str = "8.6", used: int = 300, pid: int = 0, state: tuple[int, ...] = (0,) * 4) -> None:
        """The GPUs are now this one, with 24 GiB, `used` MiB of them; state: errors, throttling, compute mode, MIG."""
        major, minor = capability.split(".")
        self.environment["NVML_GPUS"] = " ".join(map(str, (major, minor, 24576, used, pid, *state)))

    def torch(self, version: str, cuda: str | None, architectures: str) -> None:
        """The wheel of torch is now one that was built so."""
        package = self.wheel / "torch"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text(f"from torch import _C, version\n__version__ = {version!r}\n")
        (package / "version.py").write_text(f"cuda = {cuda!r}\n__version__ = {version!r}\n")
        (package / "_C.py").write_text(f"_cuda_getArchFlags = lambda: {architectures!r}\n")

    def limits(self, files: str = "65536", processes: str = "unlimited") -> None:
        rows = [("Max open files", files), ("Max processes", processes), ("Max locked memory", "8388608")]
        self.write("proc/self/limits", "\n".join(f"{name:<26}{soft:<21}{soft:<21}units" for name, soft in rows))

    def shared_memory(self, size: str) -> None:
        (self.root / "dev/shm").mkdir(parents=True, exist_ok=True)
        self.write("proc/self/mounts", f"shm /dev/shm tmpfs rw,nosuid,size={size} 0 0\n")

    def into_container(self) -> None:
        self.write(".dockerenv")

    def findings(self) -> dict[str, dict[str, Any]]:
        """The findings by their names, from a process of its own."""
        return {
            each["check"]: each for each in self._run([sys.executable, "-c", PROGRAM, str(self.root), "."])["findings"]
        }

    def command(self) -> dict[str, Any]:
        """What `yoloyard doctor --json --quick` prints: GPUs and torch are made up, the rest is this machine's."""
        return self._run([sys.executable, "-m", "yoloyard", "doctor", "--json", "--quick"])

    def _run(self, command: list[str]) -> dict[str, Any]:
        environment = {
            **os.environ,
            **self.environment,
            "LD_LIBRARY_PATH": str(self.nvml),
            "LD_PRELOAD": str(self.nvml / "libnvidia-ml.so.1"),
            "PYTHONPATH": os.pathsep.join([str(self.wheel), str(SOURCE), os.environ.get("PYTHONPATH", "")]),
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def machine(tmp_path: Path, fake_nvml: Path) -> Machine:
    return Machine(tmp_path, fake_nvml)
