"""The program that builds and runs containers: docker, podman or buildah, whichever is there and answers."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from yoloyard.errors import UserError

BUILDERS = ("docker", "podman", "buildah")
RUNNERS = ("docker", "podman")


@dataclass(frozen=True)
class Engine:
    """`name` is docker, podman or buildah; `command` is how its commands begin."""

    name: str
    command: list[str]

    def output(self, *words: str) -> str | None:
        """What a command prints, None if it fails."""
        done = subprocess.run([*self.command, *words], capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else None

    def has(self, image: str) -> bool:
        """Whether the image is in the local store."""
        return self.output("inspect", "--type", "image", image) is not None


def find_engine(wanted: str | None = None, can_run: bool = True) -> Engine:
    """The first engine that is installed and answers, or the one that is wanted.

    `can_run`: it must be able to run containers, which buildah can't. Raises UserError that says what to install or
    to start.
    """
    known = RUNNERS if can_run else BUILDERS
    if wanted and wanted not in known:
        raise UserError(f"{wanted} can't be used here: {', '.join(known)} can")
    silent = []
    for name in [wanted] if wanted else known:
        path = shutil.which(name)
        if path is None:
            continue
        asked = subprocess.run([path, "info"], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return Engine(name, [name])
        silent.append(f"{name} is installed but does not answer ({_last_line(asked.stderr)})")
    if silent:
        hint = " (is its service running, and may you use it? `sudo systemctl start docker`, group docker)"
        raise UserError("; ".join(silent) + (hint if "docker is" in silent[0] else ""))
    raise UserError(f"no {' or '.join([wanted] if wanted else known)} found: install Docker Engine or podman first")


def repository() -> str:
    """How images are called: $YOLOYARD_IMAGE, such as a team's path in its registry, or yoloyard."""
    return os.environ.get("YOLOYARD_IMAGE") or "yoloyard"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
