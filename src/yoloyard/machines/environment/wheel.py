"""What the installed torch was built for, asked in a process of its own: importing it may fail, or crash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_QUESTION = """
import json, torch
flags = getattr(torch._C, "_cuda_getArchFlags", None)  # torch.cuda.get_arch_list() says nothing without a GPU
print("\\n" + json.dumps({"version": torch.__version__, "cuda": torch.version.cuda,
                        "architectures": ((flags and flags()) or "").split()}))
"""


def gather(python: Path | None = None) -> dict[str, Any]:
    """Version, CUDA version (None: a wheel for CPUs) and architectures of torch; `error` where it can't be imported.

    `python`: whose torch; this process's by default.
    """
    found: dict[str, Any] = {"error": None, "version": None, "cuda": None, "architectures": []}
    try:
        done = subprocess.run(
            [str(python or sys.executable), "-c", _QUESTION], capture_output=True, text=True, timeout=300, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return found | {"error": str(error)}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"it ended with status {done.returncode}"]
        return found | {"error": last[0]}
    try:
        return found | json.loads((done.stdout.splitlines() or [""])[-1])
    except ValueError:
        return found | {"error": f"{python or sys.executable} does not answer as a Python does"}
