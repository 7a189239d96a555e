"""The doctor: gathers the facts and lets each subject judge them. It changes nothing and installs nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yoloyard.machines.doctor import compute, container, disk, gpu, limits, network, packages
from yoloyard.machines.doctor.finding import Finding
from yoloyard.machines.environment import machine, nvml
from yoloyard.machines.environment import packages as packages_of

SUBJECTS = (gpu, container, limits, disk, network, packages, compute)  # each has check(facts)
WORST_FIRST = ("problem", "warning", "skipped", "ok")


@dataclass(frozen=True)
class Examination:
    """All that was seen, and what it means; findings are sorted, the worst first."""

    facts: dict[str, Any]
    findings: list[Finding]

    @property
    def problems(self) -> int:
        return sum(finding.verdict == "problem" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(
    folder: Path = Path("."),
    endpoint: str | None = None,
    quick: bool = False,
    root: Path = Path("/"),
    python: Path | None = None,
) -> Examination:
    """Look at this machine. Opens a connection only to `endpoint`.

    `folder`: that of data and runs. `quick`: measure no speed, compute nothing. `root`: where /proc, /sys, /dev
    and the like are read. `python`: examine its packages, not those of this process. What can't be
    read becomes a finding "skipped" of its subject; a mistake in a check is raised, never hidden.
    """
    driver, installed = nvml.gather(), packages_of.gather(python)
    users = {process["pid"] for each in driver["gpus"] for process in each.get("processes", [])}
    facts: dict[str, Any] = {
        "machine": machine.gather(root, folder),
        "nvml": driver,
        "processes": {pid: machine.command_of(root, pid) for pid in users},  # who uses the GPUs
        "torch": packages_of.torch_facts(installed),
        "packages": installed,
        "disk": None if quick else disk.measure(folder),
        "network": network.measure(endpoint) if endpoint else None,
    }
    attempt = installed.get("imports", {}).get("torch", {"error": "not looked at"})
    facts["compute"] = None if quick or attempt["error"] else compute.gather(attempt.get("devices", 0), python)
    findings = [finding for subject in SUBJECTS for finding in subject.check(facts)]
    return Examination(facts, sorted(findings, key=lambda finding: WORST_FIRST.index(finding.verdict)))
