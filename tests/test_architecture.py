"""Imports point one way, modules have no effect when they are imported, and the project speaks of itself alone."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "yoloyard"

# Each room may import those in its list: all of them lie below it.
BOTTOM = {"common", "config"}
MAY_IMPORT = {
    "common": {"common"},
    "config": BOTTOM,
    "models": BOTTOM | {"models"},
    "losses": BOTTOM | {"losses"},
    "data": BOTTOM | {"data"},
    "storage": BOTTOM | {"storage", "data"},
    "demo": BOTTOM | {"demo", "data"},
    "cpu": BOTTOM | {"cpu", "models", "losses"},
    "runtimes": BOTTOM | {"runtimes", "models", "cpu"},
    "evaluation": BOTTOM | {"evaluation", "data", "runtimes"},
    "training": BOTTOM | {"training", "storage", "evaluation", "runtimes", "data", "cpu", "models", "losses"},
    "machines": BOTTOM | {"machines", "docker"},  # what it wants of the trainer it starts as a command
    "planning": BOTTOM | {"planning", "training", "data", "models", "losses", "cpu"},
    "jobs": BOTTOM | {"jobs", "planning", "machines", "docker", "storage", "data"},
    "licences": BOTTOM | {"licences", "models", "runtimes"},
    "export": BOTTOM
    | {"export", "commands", "runtimes", "evaluation", "data", "models", "storage", "licences", "demo"},
    "serving": BOTTOM | {"serving", "commands", "cpu", "runtimes", "evaluation", "data", "storage"},
    "docker": set(),  # data; its scripts run inside a container, before yoloyard
}


def room_of(module: str) -> str:
    return module.split(".")[1]


def imports_of(path: Path) -> set[str]:
    """The rooms that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "yoloyard":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("yoloyard."):
            found.add(room_of(node.module))
        elif isinstance(node, ast.Import):
            found |= {room_of(alias.name) for alias in node.names if alias.name.startswith("yoloyard.")}
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room in ("cli", "commands", "__init__", "__main__"):
        return  # the top may import everything
    assert imports_of(path) <= MAY_IMPORT[room]


def test_help_is_quick_because_it_needs_little() -> None:
    unneeded = {"torch", "cv2", "numpy", "markdown_it", "webbrowser"}
    program = (
        "import sys; from yoloyard.cli.main import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        f"sys.exit(', '.join({unneeded} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_while_the_command_is_imported_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "cyclopts.py").write_text("raise KeyboardInterrupt")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "yoloyard", "info"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "yoloyard: stopped\n")


def test_importing_everything_changes_nothing() -> None:
    program = f"""
import logging, os, random, signal, sys, threading
import cv2, matplotlib.figure, torch  # what these change is not ours
import rich.progress, rich.table, torch.distributed.pipelining, torch.utils.flop_counter
before = (dict(os.environ), torch.get_num_threads(), torch.initial_seed(), len(logging.root.handlers),
          signal.getsignal(signal.SIGINT), random.getstate(), threading.active_count())
import importlib, pathlib
for path in pathlib.Path({str(SOURCE)!r}).rglob("*.py"):
    name = ".".join(path.relative_to({str(SOURCE.parent)!r}).with_suffix("").parts).removesuffix(".__init__")
    if not name.endswith("__main__"):
        importlib.import_module(name)
after = (dict(os.environ), torch.get_num_threads(), torch.initial_seed(), len(logging.root.handlers),
         signal.getsignal(signal.SIGINT), random.getstate(), threading.active_count())
assert before == after
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
