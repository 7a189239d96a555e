"""The program that builds images: docker, podman or buildah, whichever is there and answers."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from yoloyard.common.errors import UsageError, UserError
from yoloyard.machines.containers.host import last_line

BUILDERS = ("docker", "podman", "buildah")


@dataclass(frozen=True)
class Builder:
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


def find_builder(wanted: str | None = None) -> Builder:
    """The first engine that is installed and answers, or the one that is wanted.

    Raises UsageError for a name that is none of them, UserError that says what to install or to start.
    """
    if wanted and wanted not in BUILDERS:
        raise UsageError(f"{wanted} can't be used here: {', '.join(BUILDERS)} can")
    silent = []
    for name in [wanted] if wanted else BUILDERS:
        path = shutil.which(name)
        if path is None:
            continue
        asked = subprocess.run([path, "info"], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return Builder(name, [name])
        silent.append(f"{name} is installed but does not answer ({last_line(asked.stderr) or 'no reason given'})")
    if silent:
        hint = " (is its service running, and may you use it? `sudo systemctl start docker`, group docker)"
        raise UserError("; ".join(silent) + (hint if "docker is" in silent[0] else ""))
    raise UserError(f"no {' or '.join([wanted] if wanted else BUILDERS)} found: install Docker Engine or podman first")
