"""The packages of a Python: what is installed, whether it fits together, and whether it can be imported.

Each question is asked in a process of that Python, since an import may fail or crash.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

IMPORTED = ("numpy", "cv2", "torch", "torchvision", "safetensors", "matplotlib")
OPTIONAL = ("torchvision",)  # tried only where it is installed
SECONDS = 300  # for a module to be imported from a cold network disk


def gather(python: Path | None = None) -> dict[str, Any]:
    """The inventory of `python`'s environment (default: of this one); `imports`: what each module did; `check`: of pip.

    `error` says why nothing could be learned, else it is None.
    """
    command = str(python or sys.executable)
    try:
        done = run_program(command, "inventory.py")
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": f"{command} can't be run: {error}"}
    if done.returncode:
        return {"error": f"{command}: {last_line(done.stderr) or 'it failed'}"}
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"error": f"{command} does not answer as a Python does"}
    modules = [name for name in IMPORTED if name not in OPTIONAL or found["modules"][name]]
    return found | {"error": None, "imports": import_all(command, modules), "check": pip_check(command)}


def torch_facts(packages: dict[str, Any]) -> dict[str, Any]:
    """Version, CUDA (None: a wheel for CPUs) and architectures of torch; `error` where it can't be imported."""
    attempt = packages["imports"]["torch"] if not packages["error"] else {"error": packages["error"]}
    built = attempt.get("built") or {"version": None, "cuda": None, "architectures": []}
    return {"error": None if built["version"] else attempt["error"], **built}


def pip_check(python: str) -> dict[str, Any]:
    """The lines of `pip check` about the environment of `python`; `error` where there is no pip that can tell."""
    for pip in ([python, "-m", "pip"], [sys.executable, "-m", "pip", "--python", python]):
        done = subprocess.run([*pip, "check"], capture_output=True, text=True, check=False)
        if done.returncode == 0 or done.stdout:
            return {"error": None, "lines": done.stdout.splitlines()}
    return {"error": last_line(done.stderr) or "it failed", "lines": []}


def import_all(python: str, modules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What `probe.py` found about each module; after a crash or a standstill a new process takes up the rest."""
    found: dict[str, dict[str, Any]] = {}
    while left := [name for name in modules if name not in found]:
        try:
            done = run_program(python, "probe.py", *left)
            output, end = done.stdout, ending(done.returncode)
            said = done.stderr
        except subprocess.TimeoutExpired as error:
            output = as_text(error.stdout)
            end, said = f"it took longer than {SECONDS} s", ""
        rows = [json.loads(line) for line in output.splitlines()]
        finished = {row["module"]: row for row in rows if "error" in row}
        broken = next(name for name in left if name not in finished) if len(finished) < len(left) else None
        found |= finished
        if broken:
            found[broken] = {"module": broken, "error": end, "said": said[-3000:]}
    return found


def run_program(python: str, name: str, *arguments: str, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    """Let `python` run a program that lies beside this file, without this folder on its sys.path."""
    command = program(python, name, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


def program(python: str, name: str, *arguments: str) -> list[str]:
    """The command by which `python` runs a program that lies beside this file."""
    return [python, "-c", Path(__file__).with_name(name).read_text(encoding="utf-8"), *arguments]


def ending(status: int) -> str:
    """How a process ended, by its exit status."""
    if status < 0:
        return f"the process was killed by {signal.Signals(-status).name} (a crash)"
    return f"the process ended with status {status}"


def last_line(text: str) -> str:
    """The last line that isn't empty; empty if there is none."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "").strip()


def as_text(output: str | bytes | None) -> str:
    """What a process had printed when its time was up."""
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
