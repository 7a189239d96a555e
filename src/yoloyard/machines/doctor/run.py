"""The doctor: gathers the facts and lets each subject judge them. It changes nothing and installs nothing."""

from pathlib import Path
from typing import Any

from yoloyard.machines.doctor import Finding, compute, disk, gpu, limits, network, packages
from yoloyard.machines.environment import machine, nvml
from yoloyard.machines.environment import packages as packages_of

SUBJECTS = (gpu, limits, disk, network, packages, compute)  # each has check(facts)
WORST_FIRST = ("problem", "warning", "skipped", "ok")


def examine(
    folder: Path = Path("."),
    endpoint: str | None = None,
    quick: bool = False,
    root: Path = Path("/"),
    python: Path | None = None,
) -> tuple[dict[str, Any], list[Finding]]:
    """Look at this machine: all facts, and the findings, the worst first. Opens a connection only to `endpoint`.

    `folder`: that of data and runs. `quick`: measure no speed, compute nothing. `root`: where /proc, /sys, /dev and the
    like are read. `python`: examine its packages, not those of this process.
    """
    driver, installed = nvml.gather(), packages_of.gather(python)
    users = {process["pid"] for each in driver["gpus"] for process in each.get("processes", [])}
    attempt = installed.get("imports", {}).get("torch", {"error": "not looked at"})
    facts: dict[str, Any] = {
        "machine": machine.gather(root, folder),
        "nvml": driver,
        "processes": {pid: machine.command_of(root, pid) for pid in users},  # who uses the GPUs
        "torch": packages_of.torch_facts(installed),
        "packages": installed,
        "disk": None if quick else disk.measure(folder),
        "network": network.measure(endpoint) if endpoint else None,
        "compute": None if quick or attempt["error"] else compute.gather(attempt.get("devices", 0), python),
    }
    findings = [finding for subject in SUBJECTS for finding in subject.check(facts)]
    return facts, sorted(findings, key=lambda finding: WORST_FIRST.index(finding.verdict))
