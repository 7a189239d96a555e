"""The program that builds images: docker, podman or buildah, whichever is there and answers."""

from __future__ import annotations

import shutil
import subprocess

from yoloyard.common.errors import UsageError, UserError, last_line

BUILDERS = ("docker", "podman", "buildah")


def find_builder(wanted: str | None = None) -> str:
    """The first builder that is installed and answers, or the one that is wanted.

    Raises UsageError for a name that is none of them, UserError that says what to install or to start.
    """
    if wanted and wanted not in BUILDERS:
        raise UsageError(f"{wanted} can't be used here: {', '.join(BUILDERS)} can")
    names = [wanted] if wanted else BUILDERS
    silent = []
    for name in filter(shutil.which, names):
        asked = subprocess.run([name, "info"], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return name
        silent.append(f"{name} is installed but does not answer ({last_line(asked.stderr) or 'no reason given'})")
    if silent:
        hint = " (is its service running, and may you use it? `sudo systemctl start docker`, group docker)"
        raise UserError("; ".join(silent) + (hint if "docker is" in silent[0] else ""))
    raise UserError(f"no {' or '.join(names)} found: install Docker Engine or podman first")


def is_built(builder: str, image: str) -> bool:
    """Whether the image is in the local store of this builder."""
    asked = [builder, "inspect", "--type", "image", image]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0
