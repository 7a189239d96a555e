"""Build an image from a clone of yoloyard, with docker, podman or buildah."""

import logging
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import yoloyard.docker
from yoloyard.common.errors import UsageError, UserError, last_line
from yoloyard.common.versions import versions
from yoloyard.machines.containers.host import Host
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
    for name in names:
        asked = Host().run([name, "info"])
        if asked.returncode == 0:
            return name
        if asked.returncode != 127:
            silent.append(f"{name} is installed but does not answer ({last_line(asked.stderr) or 'no reason given'})")
    if silent:
        hint = " (is its service running, and may you use it? `sudo systemctl start docker`, group docker)"
        raise UserError("; ".join(silent) + (hint if "docker is" in silent[0] else ""))
    raise UserError(f"no {' or '.join(names)} found: install Docker Engine or podman first")


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
    git = ["git", "-C", str(root)]  # prints nothing without Git or a repository, as in an unpacked archive
    seconds, commit = (Host().run([*git, "log", "-1", f"--format={each}"]).stdout.strip() for each in ("%ct", "%H"))
    arguments = {
        "BASE_IMAGE": f"ubuntu:{tag.ubuntu}",
        "TORCH": tag.torch,
        "TORCH_INDEX": tag.index,
        "CUDA": tag.cuda,
        "PIP_INDEX": "",
        "APT_MIRROR": "",
        "SOURCE_DATE_EPOCH": seconds or "0",
        "CREATED": datetime.fromtimestamp(int(seconds or "0"), UTC).isoformat(),
        "VERSION": versions()["yoloyard"],
        "REVISION": f"{commit}-dirty" if commit and Host().run([*git, "status", "--porcelain"]).stdout else commit,
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
