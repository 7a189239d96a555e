"""The cpu image, built for real on a Debian base, and one container of it that is started by `yoloyard up`."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers import (
    BASE,
    BUILD_OPTIONS,
    CONTAINERS_CONF,
    OWNER,
    REPOSITORY,
    ROOT,
    Container,
    attempt,
    run,
    say,
    yoloyard,
)
from yoloyard.demo.write import write_demo


@pytest.fixture(scope="session", autouse=True)
def engine_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Podman as it works here, podman-compose of this environment, and a home without anybody's keys."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "containers.conf").write_text(CONTAINERS_CONF, encoding="utf-8")
    patch = pytest.MonkeyPatch()
    patch.setenv("CONTAINERS_CONF", str(folder / "containers.conf"))
    patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    patch.setenv("YOLOYARD_IMAGE", REPOSITORY)
    patch.setenv("XDG_STATE_HOME", str(folder / "state"))
    patch.setenv("COLUMNS", "200")
    yield
    patch.undo()


@pytest.fixture(scope="session")
def base() -> str:
    """A Debian root as base image: no registry is needed."""
    if attempt("podman", "image", "exists", BASE).returncode:
        root = Path("/var/tmp") / f"yoloyard-base-{secrets.token_hex(4)}"
        try:
            run("debootstrap", "--variant=minbase", "bookworm", root, "http://deb.debian.org/debian", seconds=600)
            run("sh", "-c", f"tar -C {root} -c . | podman import - {BASE}", seconds=300)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    return BASE


def pip_of_this_machine(folder: Path) -> list[str]:
    """What this machine's pip has been told (a folder of wheels, a certificate), as mounts for the build."""
    lines, mounts = ["[global]"], [f"{folder}/pip.conf:/etc/pip.conf:ro"]
    for variable, setting, place in (("PIP_FIND_LINKS", "find-links", "wheels"), ("PIP_CERT", "cert", "ca.crt")):
        if path := os.environ.get(variable):
            lines.append(f"{setting} = /mnt/{place}")
            mounts.append(f"{path}:/mnt/{place}:ro")
    (folder / "pip.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [f"--build-option=--volume={mount}" for mount in mounts]


@pytest.fixture(scope="session")
def image(base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The cpu image, both stages; its name."""
    started = time.monotonic()
    yoloyard(
        *("image", "build", "cpu", "--stage", "both", "--engine", "buildah", "--base-image", base, "--torch-index", ""),
        *(f"--build-option={option}" for option in BUILD_OPTIONS),
        *pip_of_this_machine(tmp_path_factory.mktemp("pip")),
        seconds=1500,
        folder=ROOT,
    )
    say(f"building both stages took {time.monotonic() - started:.0f} s")
    yield f"{REPOSITORY}:cpu"
    for stage in ("", "-runtime"):
        attempt("podman", "rmi", "-f", f"{REPOSITORY}:cpu{stage}")


@pytest.fixture(scope="session")
def container(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A project folder of somebody's, `yoloyard up` in it, and at the end `yoloyard down`."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir()
    key = home / ".ssh" / "id_ed25519"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    folder = home / "factory"
    write_demo(folder / "line", seed=3, train=14, val=6, size=96)
    shutil.copy(ROOT / "examples" / "quickstart.ipynb", folder)
    run("chown", "-R", f"{OWNER}:{OWNER}", folder)
    for parent in folder.parents:
        if parent != Path("/tmp") and parent.owner() == "root" and str(parent).startswith(str(home.parents[1])):
            parent.chmod(0o755)  # pytest's folders are for their owner alone

    patch = pytest.MonkeyPatch()
    patch.setenv("HOME", str(home))
    patch.delenv("SSH_AUTH_SOCK", raising=False)
    started = time.monotonic()
    try:
        output = yoloyard("up", "--tag", "cpu", "--engine", "podman", folder=folder, seconds=300)
        yield Container(folder, output, key, started, time.monotonic() - started)
    finally:
        attempt(sys.executable, "-m", "yoloyard", "down", "--engine", "podman", "--volumes", folder=folder)
        patch.undo()
