"""What the operating system says of this machine. Files are read below `root`, so that a test can give its own."""

import ctypes
import json
import os
import re
import resource
from pathlib import Path
from typing import Any

import psutil

from yoloyard.common.cores import control_groups, cpus, processor, read
from yoloyard.machines.environment.inventory import names

NVIDIA = "0x10de"  # the vendor's number on the PCI bus
LIMITS = ("nofile", "memlock", "nproc")
UNLIMITED = 2**60  # limits above are none: cgroup v1 writes a huge number
TOOLKIT = ("nvidia-ctk", "nvidia-container-runtime", "nvidia-container-runtime-hook", "nvidia-container-cli")
TIME_ERROR, STA_UNSYNC = 5, 0x40  # of <sys/timex.h>


def gather(root: Path, folder: Path) -> dict[str, Any]:
    """System, CPUs, memory, limits, devices, container engines, clock. Sizes are bytes; None: unknown or unlimited."""
    kernel = read(root / "proc/sys/kernel/osrelease")
    release = re.search(r'^PRETTY_NAME="?([^"\n]*)', read(root / "etc/os-release"), re.MULTILINE)
    memory, files = psutil.virtual_memory(), ("memory.max", "memory.limit_in_bytes")  # of cgroup v2 and v1
    texts = [read(group / file) for group in control_groups(root, "memory") for file in files]
    granted = min((int(text) for text in texts if text.isdigit() and int(text) < UNLIMITED), default=None)
    shared = psutil.disk_usage(str(root / "dev/shm")) if (root / "dev/shm").is_dir() else None
    limits = {}  # soft and hard
    for name in LIMITS:
        pair = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
        limits[name] = [None if limit == resource.RLIM_INFINITY else limit for limit in pair]
    disk = os.statvfs(folder)
    return {
        "system": release[1] if release else "",
        "kernel": kernel,
        "wsl": "microsoft" in kernel.lower(),
        "container": _container(root),
        "cpus": cpus(root),
        "processor": processor(root),
        "memory": {"total": memory.total, "available": memory.available, "limit": granted},
        "shared_memory": shared and {"size": shared.total, "free": shared.free},
        "limits": limits,
        "disk": {
            "folder": str(folder.resolve()),
            "total": disk.f_blocks * disk.f_frsize,
            "free": disk.f_bavail * disk.f_frsize,
            "files_free": disk.f_favail if disk.f_files else None,  # some file systems count none
        },
        "nvidia": _nvidia(root),
        "infiniband": bool(names(root / "sys/class/infiniband")),
        "engines": _engines(root),
        "clock": clock(),
    }


def command_of(root: Path, pid: int) -> str | None:
    """The command's name of a process; None if it is not to be seen from here (another container's, say)."""
    return read(root / f"proc/{pid}/comm") or None


def clock() -> dict[str, Any]:
    """Whether the kernel's clock is kept by a time server; `synchronised` is None where the kernel doesn't say."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except AttributeError:  # not Linux
        return {"synchronised": None, "error": "this system has no adjtimex"}
    # struct timex: modes, offset, freq, maxerror, esterror, status, and more that is not needed.
    fields = (ctypes.c_long * 64)()
    state = adjtimex(fields)
    if state < 0:
        return {"synchronised": None, "error": os.strerror(ctypes.get_errno())}
    status = fields[5] & 0xFFFFFFFF
    return {"synchronised": state != TIME_ERROR and not status & STA_UNSYNC, "error": None}


def _container(root: Path) -> str | None:
    if (root / "run/.containerenv").exists():
        return "podman"
    if (root / ".dockerenv").exists():
        return "docker"
    groups = read(root / "proc/1/cgroup") + read(root / "proc/self/cgroup")
    return next((name for name in ("kubepods", "docker", "libpod", "containerd", "lxc") if name in groups), None)


def _nvidia(root: Path) -> dict[str, Any]:
    """NVIDIA's display devices on the PCI bus with their drivers, device nodes, the version of the kernel module."""
    bus = root / "sys/bus/pci/devices"
    cards = []
    for name in names(bus):
        if read(bus / name / "vendor") == NVIDIA and read(bus / name / "class").startswith("0x03"):
            driver = bus / name / "driver"
            cards.append({"address": name, "driver": driver.resolve().name if driver.exists() else None})
    # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  ..."
    version = re.match(r".*?\s(\d+\.\S+)", read(root / "proc/driver/nvidia/version"))
    modules = {line.split(" ")[0] for line in read(root / "proc/modules").splitlines()}
    return {
        "cards": cards,
        "nodes": [name for name in names(root / "dev") if name.startswith("nvidia") or name == "dxg"],
        "module": version and version[1],
        "nouveau": "nouveau" in modules or any(card["driver"] == "nouveau" for card in cards),
    }


def _engines(root: Path) -> dict[str, Any]:
    """Container engines, and what lets their containers see GPUs."""
    found = {*names(root / "usr/bin"), *names(root / "usr/local/bin")}
    try:
        runtimes = sorted(json.loads(read(root / "etc/docker/daemon.json") or "{}").get("runtimes", {}))
    except (ValueError, AttributeError):
        runtimes = []
    cdi = [f"/{place}/{name}" for place in ("etc/cdi", "var/run/cdi", "run/cdi") for name in names(root / place)]
    return {
        "engines": [name for name in ("docker", "podman") if name in found],
        "toolkit": [name for name in TOOLKIT if name in found],
        "docker_runtimes": runtimes,
        "cdi": [path for path in cdi if "nvidia" in path.rpartition("/")[2]],
    }
