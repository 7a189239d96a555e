"""The doctor on containers, limits, disk and network: each classic failure, and its healthy twin."""

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from machines.conftest import Machine
from yoloyard.machines.doctor import disk, network
from yoloyard.machines.environment import machine as facts_of


def test_no_toolkit(machine: Machine) -> None:
    machine.remove("usr/bin/nvidia-ctk")
    found = machine.findings()["container-toolkit"]
    assert found["verdict"] == "problem"
    assert "nvidia-container-toolkit" in found["remedy"]


def test_no_nvidia_runtime(machine: Machine) -> None:
    machine.write("etc/docker/daemon.json", "{}")
    found = machine.findings()["container-toolkit"]
    assert (found["verdict"], "nvidia-ctk runtime configure" in found["remedy"]) == ("problem", True)
    machine.write("usr/bin/nvidia-container-runtime-hook")  # enough for --gpus
    assert machine.findings()["container-toolkit"]["verdict"] == "warning"
    machine.write("etc/cdi/nvidia.yaml")
    assert machine.findings()["container-toolkit"]["verdict"] == "ok"


def test_podman_goes_by_cdi(machine: Machine) -> None:
    machine.remove("usr/bin/docker")
    machine.write("usr/bin/podman")
    found = machine.findings()["container-toolkit"]
    assert (found["verdict"], "cdi generate" in found["remedy"]) == ("problem", True)
    machine.write("var/run/cdi/nvidia.yaml")
    assert machine.findings()["container-toolkit"]["verdict"] == "ok"


def test_shared_memory_of_64_mb(machine: Machine) -> None:
    machine.into_container()
    machine.shared_memory(64)
    found = machine.findings()["shared-memory"]
    assert (found["verdict"], "--shm-size" in found["remedy"]) == ("warning", True)
    assert "64 MiB" in found["evidence"]
    machine.nvml["gpus"] *= 2
    assert machine.findings()["shared-memory"]["verdict"] == "problem"  # NCCL does not do without


def test_ulimits(machine: Machine) -> None:
    machine.limits(files=256, processes=100)
    found = machine.findings()
    assert found["ulimit-nofile"]["verdict"] == found["ulimit-nproc"]["verdict"] == "problem"
    assert "limits.conf" in found["ulimit-nofile"]["remedy"]
    machine.into_container()
    assert "--ulimit nofile=" in machine.findings()["ulimit-nofile"]["remedy"]


def test_locked_memory_matters_with_infiniband(machine: Machine) -> None:
    assert "ulimit-memlock" not in machine.findings()
    machine.write("sys/class/infiniband/mlx5_0/node_type")
    assert machine.findings()["ulimit-memlock"]["verdict"] == "problem"


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "200000 100000",
            "sys/fs/cgroup/a/b/cpu.max": "max 1",
        },
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/docker/ab\n0::/\n",  # in a container the path is the host's
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    ],
    ids=["v2", "v1"],
)
def test_cpus_by_quota(machine: Machine, files: dict[str, str]) -> None:
    for path, text in files.items():
        machine.write(path, text)
    found = machine.findings()["cpus"]
    assert found["verdict"] == "warning"
    assert "allows 2 of 16" in found["evidence"]
    assert "--workers 2" in found["remedy"]


def test_cpus_by_affinity(machine: Machine) -> None:
    machine.write("proc/self/status", "Cpus_allowed_list:\t0-1,4\n")
    assert facts_of.gather(machine.root, Path("."))["cpus"]["usable"] == 3


@pytest.mark.parametrize(
    ("group", "path"),
    [("0::/\n", "sys/fs/cgroup/memory.max"), ("4:memory:/x\n", "sys/fs/cgroup/memory/memory.limit_in_bytes")],
    ids=["v2", "v1"],
)
def test_memory_of_a_cgroup(machine: Machine, group: str, path: str) -> None:
    machine.write("proc/self/cgroup", group)
    machine.write(path, str(2**63 - 4096))  # v1's way to say unlimited
    assert machine.findings()["memory"]["verdict"] == "ok"
    machine.write(path, str(2 * 2**30))
    assert machine.findings()["memory"]["verdict"] == "warning"


def test_clock(machine: Machine) -> None:
    machine.clock["synchronised"] = False
    found = machine.findings()["clock"]
    assert (found["verdict"], "set-ntp" in found["remedy"]) == ("warning", True)


def test_wsl_and_container_are_told(machine: Machine) -> None:
    machine.write("proc/sys/kernel/osrelease", "5.15.167.4-microsoft-standard-WSL2\n")
    facts = facts_of.gather(machine.root, Path("."))
    assert (facts["wsl"], facts["container"]) == (True, None)
    machine.write("proc/1/cgroup", "0::/kubepods/burstable/pod1\n")
    assert facts_of.gather(machine.root, Path("."))["container"] == "kubepods"


def test_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    measured = disk.measure(tmp_path)
    assert measured["read"] > 0
    assert measured["write"] > 0
    assert list(tmp_path.iterdir()) == []
    assert disk.measure(tmp_path / "nowhere")["error"]


@pytest.mark.parametrize(("free", "verdict"), [(50e9, "ok"), (5e9, "warning"), (1e8, "problem")])
def test_disk_space(free: float, verdict: str) -> None:
    space = {"folder": "/data", "total": 100e9, "free": free, "files_free": None}
    assert disk.check({"machine": {"disk": space}, "disk": None})[0].verdict == verdict


@pytest.mark.parametrize(("read", "verdict"), [(500e6, "ok"), (20e6, "warning")])
def test_disk_speed(read: float, verdict: str) -> None:
    space = {"folder": "/data", "total": 100e9, "free": 50e9, "files_free": None}
    measured = {"error": None, "read": read, "write": 500e6}
    assert disk.check({"machine": {"disk": space}, "disk": measured})[1].verdict == verdict


class Store(http.server.BaseHTTPRequestHandler):
    """Answers as an object store does to who has no key; /broken and /yesterday do otherwise."""

    def do_HEAD(self) -> None:
        self.send_response_only(500 if self.path == "/broken" else 403)
        date = "Thu, 01 Jan 2015 00:00:00 GMT" if self.path == "/yesterday" else self.date_time_string()
        self.send_header("Date", date)
        self.end_headers()

    def log_message(self, format: str, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def store() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("scheme", "path", "checks"),
    [
        ("http", "", {"network": "ok"}),
        ("http", "/broken", {"network": "problem"}),
        ("http", "/yesterday", {"network": "ok", "clock-skew": "problem"}),
        ("https", "", {"network": "problem"}),  # it speaks no TLS
    ],
)
def test_network(store: str, scheme: str, path: str, checks: dict[str, str]) -> None:
    found = network.check({"network": network.measure(f"{scheme}://{store}{path}")})
    assert {finding.check: finding.verdict for finding in found} == checks


def test_network_without_a_server() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        measured = network.measure(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert measured["step"] == "connect"
    assert network.check({"network": measured})[0].verdict == "problem"
