"""A repository as a user has it: a data set that git ignores, a network of their own, a job file in a folder below."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from yoloyard.demo.write import write_demo

JOB = """\
train:
  data: ../demo/data.yaml
  model: ../my_model.py:build
  epochs: 3
image: torch2.8-cu128
resources: {gpu: none}
on: ssh://me@host
"""
IDENTITY = {f"GIT_{who}_{what}": "user@example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
ALONE = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}  # of what the host's user has set


def git(folder: Path, *argv: str, settings: Mapping[str, str] = ALONE) -> str:
    """What git prints."""
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": "/nowhere", **IDENTITY, **settings}
    command = ["git", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always", "-C", str(folder), *argv]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def make_repository(folder: Path, has_data: bool = True) -> Path:
    """Make one with a commit, and return its job file."""
    (folder / "jobs").mkdir(parents=True)
    files = {"my_model.py": "x = 1\n", ".gitignore": "/demo/\n*.log\n", "jobs/a.yaml": JOB}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    if has_data:
        write_demo(folder / "demo", train=3, val=2, size=64)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "First")
    return folder / "jobs" / "a.yaml"
