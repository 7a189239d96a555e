"""The doctor from end to end, on NVML, a clock and a wheel of torch that are made up at their boundary."""

from __future__ import annotations

import json
from typing import Any

from machines.conftest import Boundary, Machine

GATHER = """
import json, os, sys
from yoloyard.machines.environment import machine
from yoloyard.machines.environment import nvml
answers = []
for variables in json.loads(sys.argv[1]):
    os.environ.update(variables)
    answers.append([nvml.gather(), machine.clock()])
print(json.dumps(answers))
"""
EXAMINE = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from yoloyard.machines.doctor.run import examine
facts, findings = examine(Path("."), quick=True, root=Path(sys.argv[1]))
print(json.dumps({"facts": facts, "findings": [asdict(finding) for finding in findings]}))
"""
HEALTHY = {
    "NVML_DRIVER": "570.86.15",
    "NVML_CUDA": "12080",
    "NVML_GPUS": "8 6 24576 300 0 0 0 0 0",
    "NVML_INIT": "0",
    "NVML_HANDLE": "0",
    "NVML_MEMORY": "0",
    "CLOCK_STATE": "0",
}


def test_what_nvml_and_the_clock_say_becomes_the_facts_that_tests_make_up(boundary: Boundary, machine: Machine) -> None:
    """Each case in a process of many: what the C library says, and what `Machine` has for it."""
    cases: list[tuple[dict[str, str], list[dict[str, Any]]]] = []

    def case(**variables: str) -> None:
        cases.append((HEALTHY | variables, json.loads(json.dumps([machine.nvml, machine.clock]))))

    case()
    machine.clock["synchronised"] = False
    case(CLOCK_STATE="5")
    machine.clock["synchronised"] = True
    machine.gpu("12.0", used=6000, pid=4711)
    case(NVML_GPUS="12 0 24576 6000 4711 0 0 0 0")
    states: dict[str, dict[str, Any]] = {
        "2 0 0 0": {"uncorrected_memory_errors": 2},
        "0 64 0 0": {"throttled_by": ["heat (hardware)"]},
        "0 168 0 0": {"throttled_by": ["hardware slowdown", "heat (software)", "power brake"]},
        "0 1 0 0": {"throttled_by": []},  # idle
        "0 0 2 0": {"compute_mode": "prohibited"},
        "0 0 3 0": {"compute_mode": "exclusive"},
        "0 0 0 1": {"mig": True},
    }
    for state, facts in states.items():
        machine.gpu(**facts)
        case(NVML_GPUS=f"8 6 24576 300 0 {state}")
    machine.gpu(memory_total=None, memory_used=None)
    case(NVML_MEMORY="3")  # not supported
    for code in (999, 15):
        machine.gpu_fails(code)
        case(NVML_HANDLE=str(code))
    machine.gpu()
    machine.nvml["gpus"] += [{**machine.nvml["gpus"][0], "index": 1, "uuid": "GPU-1"}]
    machine.nvml |= {"driver": "535.183.01", "cuda": "12.2"}
    case(NVML_GPUS="\n".join([HEALTHY["NVML_GPUS"]] * 2), NVML_DRIVER="535.183.01", NVML_CUDA="12020")
    for code in (999, 18, 9, 12):
        machine.nvml_fails(code)
        case(NVML_INIT=str(code))

    answers = boundary.output("-c", GATHER, json.dumps([variables for variables, _ in cases]))
    for (variables, expected), answer in zip(cases, answers, strict=True):
        for facts in (expected[0], answer[0]):
            for error in [facts["error"], *(gpu["error"] for gpu in facts["gpus"])]:
                assert error is None or error.pop("text")  # pynvml's own words
        assert answer == expected, variables


def test_a_healthy_machine_has_nothing_but_ok(boundary: Boundary, machine: Machine) -> None:
    found = boundary.output("-c", EXAMINE, str(machine.root), **HEALTHY)
    assert found["facts"]["torch"] == {**machine.wheel, "architectures": ["sm_75", "sm_86"]}
    verdicts = {each["check"]: each["verdict"] for each in found["findings"]}
    ours = ("gpu-visible", "driver-too-old", "gpu-architecture", "gpu-taken", "gpu-health", "container-toolkit",
            "shared-memory", "ulimit-nofile", "ulimit-nproc", "cpus", "memory", "clock")  # fmt: skip
    assert {name: verdicts[name] for name in ours} == dict.fromkeys(ours, "ok")


def test_the_command_prints_facts_and_findings(boundary: Boundary) -> None:
    """GPUs and torch are made up, the rest is this machine's."""
    taken = {**HEALTHY, "NVML_GPUS": "12 0 24576 6000 4711 0 0 0 0"}
    printed = boundary.output("-m", "yoloyard", "doctor", "--json", "--quick", **taken)
    assert printed["facts"]["nvml"]["driver"] == "570.86.15"
    assert printed["facts"]["nvml"]["gpus"][0]["processes"][0]["pid"] == 4711
    assert {"gpu-too-new", "gpu-taken"} <= {found["check"] for found in printed["findings"]}
