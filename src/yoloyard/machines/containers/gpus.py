"""The NVIDIA GPUs of a host, and whether a container engine there can give them to a container."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from yoloyard.common.errors import UsageError, UserError, last_line
from yoloyard.machines.containers.host import Host

_QUERY = ["nvidia-smi", "--query-gpu=driver_version,compute_cap,name", "--format=csv,noheader"]
_WITHOUT = "--gpus none goes without a GPU"
CONFIGURE = {  # how an engine is told about the NVIDIA Container Toolkit
    "docker": "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker",
    "podman": "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
}


@dataclass(frozen=True)
class Graphics:
    """`driver` is None and the lists are empty where there is no NVIDIA GPU. Capabilities are like "8.6"."""

    driver: str | None = None
    capabilities: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def find_graphics(host: Host) -> Graphics:
    """What nvidia-smi says on `host`. Raises UserError if the driver is there but doesn't answer."""
    done = host.run(_QUERY)
    if done.returncode in (126, 127):
        return Graphics()
    said = last_line(done.stdout) or last_line(done.stderr)
    if "No devices were found" in said:
        return Graphics()
    rows = [[cell.strip() for cell in line.split(",", 2)] for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not rows or any(len(row) != 3 for row in rows):
        remedy = f"install or update it and restart the host; {_WITHOUT}"
        raise UserError(f"nvidia-smi fails on {host}: {said}. The NVIDIA driver belongs to the host: {remedy}")
    drivers, capabilities, names = zip(*rows, strict=True)
    return Graphics(drivers[0], capabilities, names)


def choose(graphics: Graphics, gpus: str) -> tuple[Graphics, list[int] | None]:
    """Those of `gpus` ("all", "0,1" or "none"), and their numbers (None: all of them; empty: none).

    Raises UsageError if there is no such number.
    """
    if graphics.driver is None or gpus == "none":
        return Graphics(), []
    if gpus == "all":
        return graphics, None
    numbers, count = [int(number) for number in gpus.split(",")], len(graphics.names)
    for number in numbers:
        if not 0 <= number < count:
            raise UsageError(f"--gpus {gpus}: there is no GPU {number}; nvidia-smi lists {count}, from 0")
    picked = [(graphics.capabilities[number], graphics.names[number]) for number in numbers]
    capabilities, names = zip(*picked, strict=True)
    return Graphics(graphics.driver, capabilities, names), numbers


def gpu_access(host: Host, engine: str) -> Literal["runtime", "cdi"]:
    """How `engine` ("docker" or "podman") gives GPUs to containers: Docker's NVIDIA runtime, or CDI.

    Raises UserError with the step to install what is missing.
    """
    if engine == "docker" and "nvidia" in host.run(["docker", "info", "--format", "{{json .Runtimes}}"]).stdout:
        return "runtime"
    listed = host.run(["nvidia-ctk", "cdi", "list"])
    specified = host.run(["sh", "-c", "cat /etc/cdi/*.yaml /etc/cdi/*.json /var/run/cdi/*.yaml /var/run/cdi/*.json"])
    has_cdi = "nvidia.com/gpu" in listed.stdout or "nvidia.com/gpu" in specified.stdout
    if has_cdi and engine == "docker":
        has_cdi = host.run(["docker", "info", "--format", "{{len .CDISpecDirs}}"]).stdout.strip() not in ("", "0")
    if has_cdi:
        return "cdi"
    configure = CONFIGURE[engine]
    if listed.returncode not in (126, 127):
        raise UserError(f"{host} has the NVIDIA Container Toolkit, but {engine} is not set up: {configure}; {_WITHOUT}")
    raise UserError(
        f"{host} has a GPU, but no NVIDIA Container Toolkit, so that containers don't see it. Install the package "
        f"nvidia-container-toolkit (its install guide adds NVIDIA's repository), then: {configure}; {_WITHOUT}"
    )


def override(access: Literal["runtime", "cdi"], numbers: Sequence[int] | None) -> dict[str, Any]:
    """What the service needs beside compose.yaml to see these GPUs (None: all)."""
    if access == "cdi":
        return {"devices": [f"nvidia.com/gpu={number}" for number in (["all"] if numbers is None else numbers)]}
    which: dict[str, Any] = {"count": "all"} if numbers is None else {"device_ids": [str(number) for number in numbers]}
    device = {"driver": "nvidia", **which, "capabilities": ["gpu"]}
    return {"deploy": {"resources": {"reservations": {"devices": [device]}}}}
