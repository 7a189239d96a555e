"""What the operating system says of this machine. Files are read below `root`, so that a test can give its own."""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
from pathlib import Path
from typing import Any

import psutil

from yoloyard.common.cores import control_groups, cpus, read

NVIDIA = "0x10de"  # the vendor's number on the PCI bus
UNLIMITED = 2**60  # limits above are none: cgroup v1 writes a huge number
TOOLKIT = ("nvidia-ctk", "nvidia-container-runtime", "nvidia-container-runtime-hook", "nvidia-container-cli")
TIME_ERROR, STA_UNSYNC = 5, 0x40  # of <sys/timex.h>


def gather(root: Path, folder: Path) -> dict[str, Any]:
    """System, CPUs, memory, limits, devices, container engines, clock. Sizes are bytes; None: unknown or unlimited."""
    kernel = read(root / "proc/sys/kernel/osrelease")
    release = re.search(r'^PRETTY_NAME="?([^"\n]*)', read(root / "etc/os-release"), re.MULTILINE)
    return {
        "system": release[1] if release else "",
        "kernel": kernel,
        "wsl": "microsoft" in kernel.lower(),
        "container": _container(root),
        "cpus": cpus(root),
        "memory": _memory(root),
        "shared_memory": _shared_memory(root),
        "limits": _limits(),
        "disk": _disk(folder),
        "nvidia": _nvidia(root),
        "infiniband": bool(_names(root / "sys/class/infiniband")),
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


def _memory(root: Path) -> dict[str, Any]:
    names = ("memory.max", "memory.limit_in_bytes")  # of version 2 and 1
    texts = [read(group / name) for group in control_groups(root, "memory") for name in names]
    limits = [int(text) for text in texts if text.isdigit() and int(text) < UNLIMITED]
    memory = psutil.virtual_memory()
    return {"total": memory.total, "available": memory.available, "limit": min(limits, default=None)}


def _shared_memory(root: Path) -> dict[str, Any] | None:
    place = root / "dev/shm"
    if not place.is_dir():
        return None
    disk = psutil.disk_usage(str(place))
    return {"size": disk.total, "free": disk.free}


def _limits() -> dict[str, list[int | None]]:
    """Soft and hard limits of this process, as [soft, hard]."""
    kinds = {"nofile": resource.RLIMIT_NOFILE, "memlock": resource.RLIMIT_MEMLOCK, "nproc": resource.RLIMIT_NPROC}
    pairs = {name: resource.getrlimit(kind) for name, kind in kinds.items()}
    return {name: [None if each == resource.RLIM_INFINITY else each for each in pair] for name, pair in pairs.items()}


def _disk(folder: Path) -> dict[str, Any]:
    status = os.statvfs(folder)
    return {
        "folder": str(folder.resolve()),
        "total": status.f_blocks * status.f_frsize,
        "free": status.f_bavail * status.f_frsize,
        "files_free": status.f_favail if status.f_files else None,  # some file systems count none
    }


def _nvidia(root: Path) -> dict[str, Any]:
    """NVIDIA's display devices on the PCI bus with their drivers, device nodes, the version of the kernel module."""
    bus = root / "sys/bus/pci/devices"
    cards = []
    for name in _names(bus):
        if read(bus / name / "vendor") == NVIDIA and read(bus / name / "class").startswith("0x03"):
            driver = bus / name / "driver"
            cards.append({"address": name, "driver": os.path.basename(driver.resolve()) if driver.exists() else None})
    # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  ..."
    version = re.match(r".*?\s(\d+\.\S+)", read(root / "proc/driver/nvidia/version"))
    modules = {line.split(" ")[0] for line in read(root / "proc/modules").splitlines()}
    return {
        "cards": cards,
        "nodes": [name for name in _names(root / "dev") if name.startswith("nvidia") or name == "dxg"],
        "module": version and version[1],
        "nouveau": "nouveau" in modules or any(card["driver"] == "nouveau" for card in cards),
    }


def _engines(root: Path) -> dict[str, Any]:
    """Container engines, and what lets their containers see GPUs."""
    found = {*_names(root / "usr/bin"), *_names(root / "usr/local/bin")}
    try:
        runtimes = sorted(json.loads(read(root / "etc/docker/daemon.json") or "{}").get("runtimes", {}))
    except (ValueError, AttributeError):
        runtimes = []
    cdi = [f"/{place}/{name}" for place in ("etc/cdi", "var/run/cdi", "run/cdi") for name in _names(root / place)]
    return {
        "engines": [name for name in ("docker", "podman") if name in found],
        "toolkit": [name for name in TOOLKIT if name in found],
        "docker_runtimes": runtimes,
        "cdi": [path for path in cdi if "nvidia" in path.rpartition("/")[2]],
    }


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
