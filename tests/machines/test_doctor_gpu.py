"""The doctor on GPUs: each classic failure is named with its remedy, and its healthy twin passes."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from machines.conftest import Machine


def test_a_healthy_machine_has_nothing_but_ok(machine: Machine) -> None:
    verdicts = {name: found["verdict"] for name, found in machine.findings().items()}
    ours = ("gpu-visible", "driver-too-old", "gpu-architecture", "gpu-taken", "gpu-health", "container-toolkit",
            "shared-memory", "ulimit-nofile", "ulimit-nproc", "cpus", "memory", "clock")  # fmt: skip
    assert {name: verdicts[name] for name in ours} == dict.fromkeys(ours, "ok")


@pytest.mark.parametrize(
    ("driver", "served", "built", "verdict"),
    [
        ("570.86.15", "12.8", "12.8", "ok"),
        ("535.183.01", "12.2", "12.8", "ok"),  # the same major: any 12.x from 525.60.13 on
        ("525.60.13", "12.0", "12.8", "ok"),
        ("525.60.11", "12.0", "12.8", "problem"),
        ("570.86.15", "12.8", "13.0", "problem"),
        ("580.65.06", "13.0", "13.2", "ok"),
        ("580.65.06", "13.0", "12.8", "ok"),  # drivers serve what is older
    ],
)
def test_driver_and_cuda_runtime(machine: Machine, driver: str, served: str, built: str, verdict: str) -> None:
    machine.nvml |= {"driver": driver, "cuda": served}
    machine.torch("2.9.0", built, "sm_86")
    found = machine.findings()["driver-too-old"]
    assert found["verdict"] == verdict
    assert driver in found["evidence"]
    assert built in found["evidence"]
    if built == "13.0":
        assert "580.65.06" in found["remedy"]
        assert "torch2.8-cu12" in found["remedy"]


def test_minor_version_compatibility_ends_where_ptx_must_be_compiled(machine: Machine) -> None:
    machine.nvml |= {"driver": "535.183.01", "cuda": "12.2"}
    machine.gpu("8.9")
    machine.torch("2.8.0", "12.8", "sm_75 compute_80")
    assert machine.findings()["driver-too-old"]["verdict"] == "problem"


@pytest.mark.parametrize(
    ("capability", "built", "check", "verdict"),
    [
        ("8.9", "sm_80 sm_86 sm_90", "gpu-architecture", "ok"),  # the same major, a higher minor
        ("8.0", "sm_86 sm_90", "gpu-too-old", "problem"),
        ("7.0", "sm_75 sm_80", "gpu-too-old", "problem"),
        ("12.0", "sm_80 sm_90 sm_100", "gpu-too-new", "problem"),
        ("12.0", "sm_80 compute_90", "gpu-architecture", "warning"),  # PTX
        ("10.3", "sm_90 sm_100a", "gpu-too-new", "problem"),  # code for 10.0 and nothing else
        ("10.3", "sm_90 sm_100f", "gpu-architecture", "ok"),  # the family of 10.0
    ],
)
def test_gpu_and_wheel(machine: Machine, capability: str, built: str, check: str, verdict: str) -> None:
    machine.gpu(capability)
    machine.torch("2.8.0", "12.8", built)
    found = machine.findings()[check]
    assert found["verdict"] == verdict
    assert capability in found["evidence"]
    assert ("torch2" in found["remedy"]) == (verdict != "ok")


def test_gpu_taken_by_another_process(machine: Machine) -> None:
    machine.write("proc/4711/comm", "python3\n")
    machine.gpu(used=6000, pid=4711)
    found = machine.findings()["gpu-taken"]
    assert found["verdict"] == "warning"
    assert "python3 (process 4711)" in found["evidence"]
    assert "kill 4711" in found["remedy"]


def test_gpu_full_by_somebody_outside_the_container(machine: Machine) -> None:
    machine.into_container()
    machine.gpu(used=23000)
    found = machine.findings()["gpu-taken"]
    assert found["verdict"] == "problem"
    assert "a container sees its own processes only" in found["evidence"]


@pytest.mark.parametrize(
    ("facts", "verdict", "word"),
    [
        ({"uncorrected_memory_errors": 2}, "problem", "2 memory errors"),
        ({"throttled_by": ["heat (hardware)"]}, "warning", "heat"),
        ({"throttled_by": []}, "ok", "full clocks"),
        ({"mig": True}, "problem", "MIG"),
        ({"mig": True, "mig_instances": 2}, "ok", "full clocks"),
    ],
)
def test_health_of_a_gpu(machine: Machine, facts: dict[str, Any], verdict: str, word: str) -> None:
    machine.gpu(**facts)
    found = machine.findings()["gpu-health"]
    assert (found["verdict"], word in found["evidence"]) == (verdict, True)


def test_gpu_that_takes_no_other_process(machine: Machine) -> None:
    machine.gpu(used=6000, pid=4711, compute_mode="exclusive")
    assert "-c DEFAULT" in machine.findings()["gpu-taken"]["remedy"]
    machine.gpu(compute_mode="exclusive")  # exclusive, but free for us
    assert machine.findings()["gpu-taken"]["verdict"] == "ok"


@pytest.mark.parametrize("fails", [Machine.nvml_fails, Machine.gpu_fails])
def test_container_that_lost_its_gpu(machine: Machine, fails: Callable[[Machine, int], None]) -> None:
    machine.into_container()
    assert machine.findings()["gpu-visible"]["verdict"] == "ok"
    fails(machine, 999)
    found = machine.findings()["container-lost-gpu"]
    assert found["verdict"] == "problem"
    assert "nvidia0" in found["evidence"]
    assert "cgroupfs" in found["remedy"]


@pytest.mark.parametrize(
    ("code", "remedy"), [(18, "reboot"), (9, "modprobe nvidia"), (12, "install NVIDIA's driver on the host")]
)
def test_driver_that_does_not_answer(machine: Machine, code: int, remedy: str) -> None:
    machine.nvml_fails(code)
    machine.remove("proc/driver")
    found = machine.findings()
    assert remedy in (found.get("driver-mismatch") or found["gpu-visible"])["remedy"]


def test_gpu_that_has_fallen_off_the_bus(machine: Machine) -> None:
    machine.gpu_fails(15)
    found = machine.findings()["gpu-visible"]
    assert (found["verdict"], "xid" in found["remedy"]) == ("problem", True)


def test_gpu_without_memory_of_its_own(machine: Machine) -> None:
    machine.gpu(memory_total=None, memory_used=None)
    found = machine.findings()
    assert (found["gpu-visible"]["verdict"], found["gpu-taken"]["verdict"]) == ("ok", "skipped")


def test_nouveau(machine: Machine) -> None:
    machine.nvml_fails(9)
    machine.write("proc/modules", "nouveau 2719744 4 - Live 0x0\n")
    assert machine.findings()["nouveau"]["verdict"] == "problem"


def test_container_started_without_its_gpu(machine: Machine) -> None:
    machine.into_container()
    machine.nvml_fails(12)
    machine.remove("dev/nvidia0")
    found = machine.findings()["gpu-visible"]
    assert (found["verdict"], "--gpus all" in found["remedy"]) == ("problem", True)


def test_no_gpu_is_no_problem(machine: Machine) -> None:
    machine.nvml_fails(12)
    for path in ("dev/nvidia0", "proc/driver", "sys/bus"):
        machine.remove(path)
    found = machine.findings()
    assert found["gpu-visible"]["verdict"] == "skipped"
    assert "driver-too-old" not in found


def test_importing_the_doctor_needs_neither_torch_nor_numpy_nor_opencv() -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'numpy', 'cv2')))\n"
        "import yoloyard.cli.doctor, yoloyard.machines.doctor.run"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
