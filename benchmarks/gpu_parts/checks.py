"""What must be true on every device: the tests marked `gpu`, the same without pytest, and items.py and runs.py."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from gpu_parts.common import PROGRAM, Sizes, dtype_of, run_limited

import on_device

COMMAND_LINE = ("cyclopts", "rich", "safetensors", "yaml", "matplotlib", "filelock")  # what it needs
Check = Callable[[], str | None]


def are_there(*names: str) -> bool:
    """Are these packages installed?"""
    return all(importlib.util.find_spec(name) for name in names)


def checks(device: torch.device, sizes: Sizes) -> list[dict[str, Any]]:
    """What was checked, whether it holds, what was said."""
    found = []
    if device.type == "cpu" or not are_there("pytest"):
        found += _in_a_process("steps", device, sizes.checks)
    else:
        found += _by_pytest(sizes.checks)
    found += _in_a_process("items", device, sizes.items)
    if are_there(*COMMAND_LINE):
        found += _in_a_process("runs", device, sizes.runs)
    else:
        said = f"not run: the command line needs {', '.join(COMMAND_LINE)}"
        found.append({"check": "runs", "holds": None, "said": said})
    return found


def _in_a_process(which: str, device: torch.device, limit: float) -> list[dict[str, Any]]:
    command = [*PROGRAM, "--checks", which, *(["--rehearse"] if device.type == "cpu" else [])]
    said, ending = run_limited(command, limit)
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return [*found, {"check": f"{which}, all of them", "holds": False, "said": ending}] if ending else found


def _by_pytest(limit: float) -> list[dict[str, Any]]:
    files = ["tests/training/test_on_device.py"]
    if are_there(*COMMAND_LINE):
        files.append("tests/end_to_end/test_train_on_gpu.py")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-vv", "--tb=short", *files]
    said, _ = run_limited(command, limit)
    found = checks_of_pytest(said)
    if not re.search(r"^=+ .*passed.* in ", said, re.MULTILINE) or not all(check["holds"] for check in found):
        found.append({"check": "pytest, all of it", "holds": False, "said": said[-6000:] or "not finished"})
    return found


def checks_of_pytest(said: str) -> list[dict[str, Any]]:
    """The tests that pytest names with `-vv`, also those before it was ended."""
    lines = re.findall(r"^(tests/\S+?::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", said, re.MULTILINE)
    return [{"check": name, "holds": verdict == "PASSED", "said": ""} for name, verdict in lines]


def answers(todo: Mapping[str, Check]) -> Iterator[dict[str, Any]]:
    """Each check by its name: it holds unless it raises, and what it returns is said."""
    for name, check in todo.items():
        try:
            said = check() or ""
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
            yield {"check": name, "holds": False, "said": f"{type(error).__name__}: {error}"[:2000]}
        else:
            yield {"check": name, "holds": True, "said": said}


def of_steps(device: torch.device) -> dict[str, Check]:
    """The checks of on_device.py one by one."""
    amp = dtype_of(device, "amp")
    todo: dict[str, Check] = {
        "losses are those of the CPU": partial(on_device.check_that_losses_are_those_of_the_cpu, device),
        "losses are those of the CPU, yolov5n": partial(
            on_device.check_that_losses_are_those_of_the_cpu, device, "yolov5n"
        ),
    }
    for dtype in dict.fromkeys((torch.float32, amp, *([torch.float16] if device.type == "cuda" else []))):
        todo[f"a step waits for nothing, {dtype}"] = partial(
            on_device.check_that_steps_wait_for_nothing, device, dtype, "yolo11n"
        )
        todo[f"a bad step leaves no trace, {dtype}"] = partial(
            on_device.check_that_a_bad_step_leaves_no_trace, device, dtype
        )
    if device.type == "cuda":  # on a CPU compiling takes more than the rehearsal
        todo["compiling changes nothing"] = partial(on_device.check_that_compiling_changes_nothing, device, amp)
    return todo
