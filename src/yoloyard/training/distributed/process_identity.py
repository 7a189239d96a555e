"""A process by more than its number, which containers and restarts give to several: is it dead, and end it."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def own_identity() -> str:
    """This process: the start of the system, the namespace of process numbers, its number, its start.

    Empty where there is no Linux `/proc`, or that of another namespace; nobody else's is equal then.
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return ""
        return f"{_place()} {os.getpid()} {_start_of(os.getpid())}"
    except OSError:
        return ""


def is_dead(identity: str) -> bool:
    """Is it certain that the process has ended? A process of another host or container is never known to be dead."""
    return (number := _number_here(identity)) is not None and not _is_running(number, identity)


def kill(identity: str) -> None:
    """End the process (SIGKILL) if it runs here; nothing happens otherwise."""
    number = _number_here(identity)
    if number is not None and _is_running(number, identity):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def _number_here(identity: str) -> int | None:
    """The process's number, if it is of this system and namespace."""
    *place, number, _ = identity.split() or ["", ""]
    return int(number) if place and place == own_identity().split()[:2] else None


def _is_running(number: int, identity: str) -> bool:
    try:
        return _start_of(number) == identity.split()[-1]
    except OSError:
        return False


def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _start_of(number: int) -> str:
    """When a process started, in ticks since the system did; `dead` of one that has ended and is not yet reaped."""
    state, *fields = (
        Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    )
    return "dead" if state in "ZX" else fields[18]
