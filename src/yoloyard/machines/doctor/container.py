"""Can containers on this machine get its GPUs: NVIDIA Container Toolkit, Docker's runtimes, CDI."""

from __future__ import annotations

from typing import Any

from yoloyard.machines.containers.gpus import CONFIGURE
from yoloyard.machines.doctor.finding import Finding

CHECK, TITLE = "container-toolkit", "GPUs for containers"
INSTALL = (
    "install the package nvidia-container-toolkit on the host (after adding NVIDIA's package source: "
    "docs.nvidia.com/datacenter/cloud-native/container-toolkit), then: "
)


def check(facts: dict[str, Any]) -> list[Finding]:
    """One finding an engine; skipped inside a container (the toolkit is the host's), without a GPU or an engine."""
    machine, engines = facts["machine"], facts["machine"]["engines"]
    reason = ""
    if machine["container"]:
        reason = f"this is a container itself ({machine['container']})"
    elif not machine["nvidia"]["cards"] and not machine["nvidia"]["nodes"]:
        reason = "there is no NVIDIA GPU"
    elif not engines["engines"]:
        reason = "there is no docker and no podman"
    if reason:
        return [Finding(CHECK, TITLE, "skipped", reason)]
    return [_engine(name, engines) for name in engines["engines"]]


def _engine(name: str, engines: dict[str, Any]) -> Finding:
    title = f"{TITLE} of {name}"
    toolkit, runtimes, cdi = engines["toolkit"], engines["docker_runtimes"], engines["cdi"]
    has = f"toolkit: {', '.join(toolkit) or 'none'}; CDI: {', '.join(cdi) or 'none'}; "
    has += f"runtimes in /etc/docker/daemon.json: {', '.join(runtimes) or 'none'}"
    command = CONFIGURE[name]
    if not toolkit:
        return Finding(CHECK, title, "problem", has, INSTALL + command)
    if name == "podman" and not cdi:
        return Finding(CHECK, title, "problem", has, command)
    if name == "docker" and "nvidia" not in runtimes and not cdi:
        if "nvidia-container-runtime-hook" in toolkit:  # Docker finds it by its name
            evidence = f"{has}: docker run --gpus works, --runtime=nvidia does not"
            return Finding(CHECK, title, "warning", evidence, command)
        return Finding(CHECK, title, "problem", has, command)
    return Finding(CHECK, title, "ok", has)
