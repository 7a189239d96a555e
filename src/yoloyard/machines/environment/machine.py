"""What the operating system says of the machine. Each file is read below `root`, so that a test hands in its own."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

from yoloyard.common.cgroups import control_groups, cpus, read

NVIDIA = "0x10de"  # the vendor's number on the PCI bus
UNLIMITED = 2**60  # limits above are none: cgroup v1 writes a huge number
TOOLKIT = ("nvidia-ctk", "nvidia-container-runtime", "nvidia-container-runtime-hook", "nvidia-container-cli")
TIME_ERROR, STA_UNSYNC = 5, 0x40  # of <sys/timex.h>


def gather(root: Path, folder: Path) -> dict[str, Any]:
    """System, CPUs, memory, limits, devices, container engines, clock. Sizes are bytes; None: unknown or unlimited."""
    kernel = read(root / "proc/sys/kernel/osrelease")
    return {
        "system": _value(read(root / "etc/os-release"), "PRETTY_NAME=").strip('"'),
        "kernel": kernel,
        "wsl": "microsoft" in kernel.lower(),
        "container": _container(root),
        "cpus": cpus(root),
        "memory": _memory(root),
        "shared_memory": _shared_memory(root),
        "limits": _limits(root),
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
    info = read(root / "proc/meminfo")
    values = [
        int(text)
        for group in control_groups(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := read(group / name)).isdigit() and int(text) < UNLIMITED
    ]
    return {
        "total": _kilobytes(info, "MemTotal:"),
        "available": _kilobytes(info, "MemAvailable:"),
        "limit": min(values, default=None),
    }


def _shared_memory(root: Path) -> dict[str, Any] | None:
    """Of /dev/shm: the size that it was mounted with, or what its file system says, and what is free."""
    place = root / "dev/shm"
    if not place.is_dir():
        return None
    status = os.statvfs(place)
    size = status.f_blocks * status.f_frsize
    for line in read(root / "proc/self/mounts").splitlines():
        _, where, kind, options, *_ = line.split(" ")
        given = _value(options.replace(",", "\n"), "size=")
        if where == "/dev/shm" and kind == "tmpfs" and given:
            digits, unit = given.rstrip("kmgKMG"), given[-1].lower()
            size = int(digits) * {"k": 2**10, "m": 2**20, "g": 2**30}.get(unit, 1)
    return {"size": size, "free": min(size, status.f_bavail * status.f_frsize)}


def _limits(root: Path) -> dict[str, Any]:
    """Soft and hard limits of this process, as [soft, hard]."""
    names = {"Max open files": "nofile", "Max locked memory": "memlock", "Max processes": "nproc"}
    found = {}
    for line in read(root / "proc/self/limits").splitlines():
        if name := names.get(line[:26].strip()):
            found[name] = [None if word == "unlimited" else int(word) for word in line[26:].split()[:2]]
    return found


def _disk(folder: Path) -> dict[str, Any]:
    status = os.statvfs(folder)
    return {
        "folder": str(folder.resolve()),
        "total": status.f_blocks * status.f_frsize,
        "free": status.f_bavail * status.f_frsize,
        "files_free": status.f_favail if status.f_files else None,  # some file systems count none
    }


def _nvidia(root: Path) -> dict[str, Any]:
    """NVIDIA's display devices on the PCI bus with their kernel drivers, device nodes, the kernel module's version."""
    bus = root / "sys/bus/pci/devices"
    cards = []
    for name in _names(bus):
        if read(bus / name / "vendor") == NVIDIA and read(bus / name / "class").startswith("0x03"):
            driver = bus / name / "driver"
            cards.append({"address": name, "driver": os.path.basename(driver.resolve()) if driver.exists() else None})
    modules = {line.split(" ")[0] for line in read(root / "proc/modules").splitlines()}
    return {
        "cards": cards,
        "nodes": [name for name in _names(root / "dev") if name.startswith("nvidia") or name == "dxg"],
        "module": _module_version(read(root / "proc/driver/nvidia/version")),
        "nouveau": "nouveau" in modules or any(card["driver"] == "nouveau" for card in cards),
    }


def _module_version(text: str) -> str | None:
    """ "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  ..." -> "570.86.15"."""
    first = text.splitlines()[0] if text else ""
    return next((word for word in first.split() if word[0].isdigit() and "." in word), None)


def _engines(root: Path) -> dict[str, Any]:
    """Container engines, and what lets their containers see GPUs."""
    folders = [root / "usr/bin", root / "usr/local/bin"]
    found = {name for folder in folders for name in _names(folder)}
    settings = read(root / "etc/docker/daemon.json")
    try:
        runtimes = sorted(json.loads(settings or "{}").get("runtimes", {}))
    except (ValueError, AttributeError):
        runtimes = []
    specifications = [
        str(Path("/", place, name))
        for place in ("etc/cdi", "var/run/cdi", "run/cdi")
        for name in _names(root / place)
        if "nvidia" in name
    ]
    return {
        "engines": [name for name in ("docker", "podman") if name in found],
        "toolkit": [name for name in TOOLKIT if name in found],
        "docker_runtimes": runtimes,
        "cdi": specifications,
    }


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _value(text: str, name: str) -> str:
    """What follows `name` on the line that begins with it; empty if none does."""
    return next((line.removeprefix(name).strip() for line in text.splitlines() if line.startswith(name)), "")


def _kilobytes(text: str, name: str) -> int | None:
    words = _value(text, name).split()
    return int(words[0]) * 1024 if words else None
