"""Build an image from a clone of yoloyard, with docker, podman or buildah."""

import logging
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import yoloyard.docker
from yoloyard.common.errors import UsageError, UserError, last_line
from yoloyard.common.versions import versions
from yoloyard.machines.image.versions import Tag, repository

log = logging.getLogger(__name__)

BUILDERS = ("docker", "podman", "buildah")
Stage = Literal["runtime", "devel"]


def find_builder(wanted: str | None = None) -> str:
    """The first of `BUILDERS` that is installed and answers, or the one that is wanted.

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


def image_names(tag: Tag, stage: Stage) -> list[str]:
    """What an image is called: by its tag and by each alias; the runtime stage with `-runtime` behind it."""
    suffix = "-runtime" if stage == "runtime" else ""
    return [f"{repository()}:{name}{suffix}" for name in (tag.name, *tag.aliases)]


def clone_root() -> Path:
    """The clone that this package is used from. Raises UserError where there is none."""
    root = Path(yoloyard.docker.__file__).parents[3]
    if not (root / "pyproject.toml").exists() or not (root / "src" / "yoloyard").is_dir():
        raise UserError("images are built from a clone of yoloyard: clone it, `pip install -e .` there, and try again")
    return root


def build_command(
    builder: str,
    root: Path,
    tag: Tag,
    stage: Stage,
    replaced: Mapping[str, str | None] = {},
    options: Sequence[str] = (),
) -> list[str]:
    """The command that builds one stage of a tag.

    `replaced`: build arguments in place of those of the tag, None to keep it. `options` go to the builder as they are.
    """
    if any(value and re.search(r"://[^/]*@", value) for value in replaced.values()):
        raise UsageError("a mirror's password would be kept in the image: name the mirror without a user")
    seconds, commit = _git(root, "log", "-1", "--format=%ct") or "0", _git(root, "rev-parse", "HEAD")
    arguments = {
        "BASE_IMAGE": f"ubuntu:{tag.ubuntu}",
        "TORCH": tag.torch,
        "TORCH_INDEX": tag.index,
        "CUDA": tag.cuda,
        "PIP_INDEX": "",
        "APT_MIRROR": "",
        "SOURCE_DATE_EPOCH": seconds,
        "CREATED": datetime.fromtimestamp(int(seconds), UTC).isoformat(),
        "VERSION": versions()["yoloyard"],
        "REVISION": f"{commit}-dirty" if commit and _git(root, "status", "--porcelain") else commit,
        "TAG": tag.name,
        **{name: value for name, value in replaced.items() if value is not None},
    }
    # The health check is not part of OCI's format, which podman and buildah take by default.
    argv = [builder, "build", *(["--format", "docker", "--layers"] if builder != "docker" else [])]
    argv += ["--file", str(root / "src" / "yoloyard" / "docker" / "Dockerfile"), "--target", stage]
    argv += [word for name in image_names(tag, stage) for word in ("--tag", name)]
    argv += [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    return [*argv, *options, str(root)]


def build(command: list[str]) -> None:
    """Run a build; its output goes to the console. Raises UserError if it fails."""
    log.info(shlex.join(command))
    with subprocess.Popen(command) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.terminate()  # where Ctrl-C didn't reach it; it removes its working containers before it ends
            process.wait()
            raise
    if status:
        raise UserError(f"the build failed (status {status}); the reason stands above")


def _git(root: Path, *argv: str) -> str:
    """What Git says about the clone; empty without Git or where there is no repository, as in an unpacked archive."""
    try:
        done = subprocess.run(["git", "-C", root, *argv], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
