"""The packages of a Python: what is installed, whether it fits together, and whether it can be imported.

Each question is asked in a process of that Python, since an import may fail or crash.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yoloyard.common.errors import last_line

IMPORTED = ("numpy", "cv2", "torch", "torchvision", "safetensors", "matplotlib")  # torchvision where it is installed
IMPORT_SECONDS = 300  # for modules to be imported from a cold network disk


def gather(python: Path | None = None) -> dict[str, Any]:
    """The inventory of `python`'s environment (default: of this one); `imports`: what each module did; `check`: of pip.

    `error` says why nothing could be learned, else it is None.
    """
    command = str(python or sys.executable)
    rows, _ = run_probes(command, "inventory.py", seconds=IMPORT_SECONDS)
    found: dict[str, Any] = rows[0] if rows else {"error": "it does not answer as a Python does"}
    if found["error"]:
        return {"error": f"{command} can't be used: {found['error']}"}
    modules = [name for name in IMPORTED if name != "torchvision" or found["modules"][name]]
    return found | {"imports": import_all(command, modules), "check": _pip_check(command)}


def torch_facts(packages: dict[str, Any]) -> dict[str, Any]:
    """Version, CUDA (None: a wheel for CPUs) and architectures of torch; `error` where it can't be imported."""
    attempt = packages["imports"]["torch"] if not packages["error"] else {"error": packages["error"]}
    built = attempt.get("built") or {"version": None, "cuda": None, "architectures": []}
    return {"error": None if built["version"] else attempt["error"], **built}


def _pip_check(python: str) -> dict[str, Any]:
    """The lines of `pip check` about the environment of `python`; `error` where there is no pip that can tell."""
    for pip in ([python, "-m", "pip"], [sys.executable, "-m", "pip", "--python", python]):
        done = subprocess.run([*pip, "check"], capture_output=True, text=True, check=False)
        if done.returncode == 0 or done.stdout:
            return {"error": None, "lines": done.stdout.splitlines()}
    return {"error": last_line(done.stderr) or "it failed", "lines": []}


def import_all(python: str, modules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What `inventory.py` found about each module. After a crash or a hang, a new process does the rest."""
    found: dict[str, dict[str, Any]] = {}
    while left := [name for name in modules if name not in found]:
        rows, _ = run_probes(python, "inventory.py", *left, seconds=IMPORT_SECONDS)
        found |= {row["probe"]: row for row in rows if row["probe"] in left} or {left[0]: rows[-1]}
    return found


def run_probes(
    python: str, name: str, *arguments: str, seconds: float, variables: Mapping[str, str] = {}
) -> tuple[list[dict[str, Any]], str]:
    """Let `python` run a program beside this file that prints a line of JSON before and after each probe.

    Returns the lines after the probes, and what the process wrote to standard error. A probe during which the process
    ended has that as its error, and `said`; where it ended before the first one, the probe is called "start".
    """
    output = said = end = ""
    try:
        # As a text, so that this folder is not on its sys.path.
        command = [python, "-c", Path(__file__).with_name(name).read_text(encoding="utf-8"), *arguments]
        variables = {**os.environ, **variables}
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, env=variables)
        output, said = done.stdout, done.stderr
        if done.returncode < 0:
            end = f"the process was killed by {signal.Signals(-done.returncode).name} (a crash)"
        elif done.returncode:
            end = f"the process ended with status {done.returncode}"
    except OSError as error:
        end = str(error)
    except subprocess.TimeoutExpired as error:
        streams = (error.stdout, error.stderr)
        output, said = (text.decode(errors="replace") if isinstance(text, bytes) else text or "" for text in streams)
        end = f"no answer after {seconds} s"
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    finished = [row for row in rows if "error" in row]
    is_inside = bool(rows) and "error" not in rows[-1]
    if end or is_inside:
        error_line = ": ".join(filter(None, (end or "the process ended with status 0", last_line(said))))
        probe = rows[-1]["probe"] if is_inside else "start"
        finished.append({"probe": probe, "error": error_line, "said": said[-3000:]})
    return finished, said
