"""A network of hosts, and a run for them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_job import NETWORK, Job, make_job, write_data
from host_network import Network


def is_possible() -> str:
    """Why there can be no network of namespaces here; empty if there can."""
    if not all(map(shutil.which, ("ip", "unshare"))):
        return "ip (package iproute2) or unshare is missing"
    done = subprocess.run(
        ["ip", "netns", "add", name := f"yy{os.getpid()}"], check=False, capture_output=True, text=True
    )
    if done.returncode == 0:
        subprocess.run(["ip", "netns", "delete", name], check=True)
    return done.stderr.strip()


@pytest.fixture
def network() -> Iterator[Network]:
    """A network without hosts yet."""
    if why := is_possible():
        pytest.skip(f"no network namespaces: {why}")
    network = Network(f"yy{os.getpid()}", os.getpid() % 250)
    yield network
    network.remove()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the network."""
    path = tmp_path_factory.mktemp("model") / "steady.py"
    path.write_text(Path(__file__).parents[1].joinpath("tiny_network.py").read_text() + NETWORK)
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data.yaml of 24 training images with a bright square each."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def job(tmp_path: Path, data: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A run of many epochs in `tmp_path`, slow until its file is removed."""
    return make_job(tmp_path, data, model, monkeypatch)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path, model: Path) -> list[float]:
    """The losses of each epoch of that run in one process, which nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        job = make_job(tmp_path_factory.mktemp("undisturbed"), data, model, patch)
        job.slow.unlink()
        command = [sys.executable, "-m", "yoloyard", *map(str, job.words)]
        subprocess.run(command, cwd=job.project.parent, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return job.losses()
