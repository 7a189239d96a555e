"""What the system lets this process use: its cores, and the control groups (cgroup v1 and v2) with their limits.

Each file is read below `root`, so that a test can give its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def cpus(root: Path) -> dict[str, Any]:
    """How many cores this process may run on, the container's quota of them, and the lesser of both."""
    count = len(allowed_cores(root)) or os.cpu_count()
    quota = min((cores for _, cores in quotas(root)), default=None)
    return {"allowed": count, "quota": quota, "usable": min(count or 1, quota or float("inf"))}


def allowed_cores(root: Path) -> list[int]:
    """The numbers of the cores that this process may run on; none where the system has no /proc."""
    status = read(root / "proc/self/status").splitlines()
    spans = next((line.partition(":")[2] for line in status if line.startswith("Cpus_allowed_list:")), "")
    online = set(_numbers(read(root / "sys/devices/system/cpu/online")))  # where cores can be plugged in, fewer
    return [number for number in _numbers(spans.strip()) if number in online or not online]


def quotas(root: Path) -> list[tuple[Path, float]]:
    """The control groups that limit this process's use of the CPU, each with the cores that it grants."""
    found = []
    for group in control_groups(root, "cpu"):
        quota, _, period = read(group / "cpu.max").partition(" ")  # v2
        if not quota:
            quota, period = read(group / "cpu.cfs_quota_us"), read(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():  # else "max" or -1: unlimited
            found.append((group, int(quota) / int(period)))
    return found


def control_groups(root: Path, controller: str) -> list[Path]:
    """The folders of this process's control group and of those above it, whose limits hold too."""
    mount = root / "sys/fs/cgroup"
    folders = []
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = mount / (controllers if (mount / controllers).exists() else controller)  # v2 names no controllers
        group = base / path.lstrip("/")
        folders += [each for each in (group, *group.parents) if each == base or base in each.parents]
    return folders


def read(path: Path) -> str:
    """A file's text without the space around; empty if it isn't there or may not be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _numbers(spans: str) -> list[int]:
    """`0-2,5` as [0, 1, 2, 5]."""
    ends = [span.split("-") for span in spans.split(",") if span]
    return [number for span in ends for number in range(int(span[0]), int(span[-1]) + 1)]
