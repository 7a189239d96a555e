"""A made-up machine for the doctor: /proc, /sys, /dev and /etc as files, the rest as facts, or at its boundary in C."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from yoloyard.machines.doctor import gpu, limits
from yoloyard.machines.environment import machine as machine_facts

SOURCE = Path(__file__).parents[2] / "src"


class Machine:
    """A healthy machine with one GPU, until a test changes something; `findings()` examines it in this process.

    What the system says is really read, below `root`; what NVML, torch and system calls say are the facts `nvml`,
    `wheel` and `calls`, in the form that `environment` gives them.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.nvml: dict[str, Any] = {"error": None, "driver": "570.86.15", "cuda": "12.8", "gpus": []}
        self.clock = {"synchronised": True, "error": None}
        self.calls: dict[str, Any] = {"clock": self.clock}
        self.gpu()
        self.torch("2.8.0+cu128", "12.8", "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120")
        self.write("proc/self/status", "Cpus_allowed_list:\t0-15\n")
        self.write("proc/self/cgroup", "0::/user.slice\n")
        self.write("dev/shm/held", "")
        self.limits()
        self.shared_memory(16384)
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

    def gpu(self, capability: str = "8.6", used: int = 300, pid: int = 0, **facts: Any) -> None:
        """The GPUs are now this one, with 24 GiB, `used` MiB of them, and with `facts` instead of a healthy one's."""
        healthy = {
            "index": 0,
            "error": None,
            "name": f"Fake {capability}",
            "uuid": "GPU-0",
            "capability": capability,
            "memory_total": 24576 << 20,
            "memory_used": used << 20,
            "processes": [{"pid": pid, "memory": used << 20}] if pid else [],
            "uncorrected_memory_errors": 0,
            "throttled_by": [],
            "compute_mode": "default",
            "mig": False,
            "mig_instances": 0,
        }
        self.nvml["gpus"] = [healthy | facts]

    def nvml_fails(self, code: int) -> None:
        """NVML can't be asked."""
        self.nvml = {"error": _error(code), "driver": None, "cuda": None, "gpus": []}

    def gpu_fails(self, code: int) -> None:
        """NVML answers, its GPU does not."""
        self.nvml["gpus"] = [{"index": 0, "error": _error(code)}]

    def torch(self, version: str, cuda: str | None, architectures: str) -> None:
        """The wheel of torch is now one that was built so."""
        self.wheel = {"error": None, "version": version, "cuda": cuda, "architectures": architectures.split()}

    def limits(self, files: int = 65536, processes: int | None = None) -> None:
        limits = {"nofile": files, "nproc": processes, "memlock": 8388608}
        self.calls["limits"] = {name: [value, value] for name, value in limits.items()}

    def shared_memory(self, mebibytes: int) -> None:
        self.calls["shared_memory"] = {"size": mebibytes << 20, "free": mebibytes << 20}

    def into_container(self) -> None:
        self.write(".dockerenv")

    def findings(self) -> dict[str, dict[str, Any]]:
        """The findings of GPUs, containers and limits by their names."""
        users = {process["pid"] for each in self.nvml["gpus"] for process in each.get("processes", [])}
        machine = machine_facts.gather(self.root, Path("."))
        machine["memory"]["total"] = 64 << 30
        facts = {
            "machine": machine | self.calls,
            "nvml": self.nvml,
            "processes": {pid: machine_facts.command_of(self.root, pid) for pid in users},
            "torch": self.wheel,
        }
        found = [*gpu.check(facts), *limits.check(facts)]
        return {each.check: asdict(each) for each in found}


def _error(code: int) -> dict[str, Any]:
    return {"code": code, "text": "Unknown Error" if code == 999 else "Some Error"}


class Boundary:
    """Processes whose NVML and clock are a C library of ours and whose torch is a made-up wheel."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler")
        self.folder, self.wheel = folder, folder / "wheel"
        library, source = folder / "libnvidia-ml.so.1", Path(__file__).with_name("fake_nvml.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True)
        package = self.wheel / "torch"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("from torch import _C, version\n__version__ = version.__version__\n")
        (package / "version.py").write_text("cuda = '12.8'\n__version__ = '2.8.0+cu128'\n")
        (package / "_C.py").write_text("_cuda_getArchFlags = lambda: 'sm_75 sm_86'\n")

    def output(self, *words: str, **variables: str) -> Any:
        """What Python prints for these words, read as JSON; `variables` are those that `fake_nvml.c` goes by."""
        environment = {
            **os.environ,
            **variables,
            "LD_LIBRARY_PATH": str(self.folder),
            "LD_PRELOAD": str(self.folder / "libnvidia-ml.so.1"),
            "PYTHONPATH": os.pathsep.join([str(self.wheel), str(SOURCE), os.environ.get("PYTHONPATH", "")]),
        }
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, check=False)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture(scope="session")
def boundary(tmp_path_factory: pytest.TempPathFactory) -> Boundary:
    return Boundary(tmp_path_factory.mktemp("boundary"))
