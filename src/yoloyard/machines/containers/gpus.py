"""The NVIDIA GPUs of a host, and how a container engine there gives them to a container."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    """`driver` is None and the lists are empty where no NVIDIA GPU is used. Capabilities are like "8.6"."""

    driver: str | None = None
    capabilities: Sequence[str] = ()
    names: Sequence[str] = ()
    numbers: Sequence[int] | None = None  # None: all that there are


def find_graphics(host: Host, gpus: str) -> Graphics:
    """Those of `gpus` ("all", "0,1" or "none") as nvidia-smi on `host` describes them.

    Raises UserError if the driver is there but doesn't answer, or none is there where numbers are asked for; UsageError
    if there is no such number.
    """
    if gpus == "none":
        return Graphics()
    done = host.run(_QUERY)
    said = last_line(done.stdout) or last_line(done.stderr)
    if done.returncode in (126, 127) or "No devices were found" in said:
        if gpus != "all":
            raise UserError(f"--gpus {gpus}: {host} has no NVIDIA GPU, or no driver for it (nvidia-smi is not there)")
        return Graphics()
    rows = [[cell.strip() for cell in line.split(",", 2)] for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not rows or any(len(row) != 3 for row in rows):
        remedy = f"install or update it and restart the host; {_WITHOUT}"
        raise UserError(f"nvidia-smi fails on {host}: {said}. The NVIDIA driver belongs to the host: {remedy}")
    numbers = None if gpus == "all" else [int(number) for number in gpus.split(",")]
    for number in numbers or ():
        if number >= len(rows):
            raise UsageError(f"--gpus {gpus}: there is no GPU {number}; nvidia-smi lists {len(rows)}, from 0")
    drivers, capabilities, names = zip(*(rows if numbers is None else [rows[n] for n in numbers]), strict=True)
    return Graphics(drivers[0], capabilities, names, numbers)


def gpu_service(host: Host, engine: str, numbers: Sequence[int] | None) -> dict[str, Any]:
    """What the service needs beside compose.yaml to see these GPUs (None: all), by Docker's NVIDIA runtime or CDI.

    Raises UserError with the step to install what is missing.
    """
    if engine == "docker" and "nvidia" in host.run(["docker", "info", "--format", "{{json .Runtimes}}"]).stdout:
        which: dict[str, Any] = {"count": "all"} if numbers is None else {"device_ids": list(map(str, numbers))}
        device = {"driver": "nvidia", **which, "capabilities": ["gpu"]}
        return {"deploy": {"resources": {"reservations": {"devices": [device]}}}}
    listed = host.run(["nvidia-ctk", "cdi", "list"])
    specified = host.run(["sh", "-c", "cat /etc/cdi/*.yaml /etc/cdi/*.json /var/run/cdi/*.yaml /var/run/cdi/*.json"])
    has_cdi = "nvidia.com/gpu" in listed.stdout + specified.stdout
    if has_cdi and engine == "docker":
        has_cdi = host.run(["docker", "info", "--format", "{{len .CDISpecDirs}}"]).stdout.strip() not in ("", "0")
    if has_cdi:
        return {"devices": [f"nvidia.com/gpu={number}" for number in (["all"] if numbers is None else numbers)]}
    missing = f"the NVIDIA Container Toolkit, but {engine} is not set up"
    if listed.returncode in (126, 127):
        missing = "a GPU, but no NVIDIA Container Toolkit, so that containers don't see it. Install the package "
        missing += "nvidia-container-toolkit (its install guide adds NVIDIA's repository), then"
    raise UserError(f"{host} has {missing}: {CONFIGURE[engine]}; {_WITHOUT}")
