"""A network of hosts, and a run for them that can be made slow, so that things happen in the middle of it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from commands import TINY
from network import Network
from yoloyard.demo.write import write_demo

# With frozen BatchNorm any number of processes trains the same weights.
NETWORK = """
import os, signal, time
import torch

class Steady(Tiny):
    steps = 0

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images):
        if self.training:
            self.steps += 1
            if os.path.exists(os.environ["SLOW"]):
                time.sleep(0.2)
            if self.steps == 5 and os.environ.get("ACTION"):
                exec(os.environ["ACTION"])
        return super().forward(images)
"""
BATCH, EPOCHS = 12, 40  # two batches an epoch


@dataclass
class Job:
    """A command that all hosts run, and what it writes where they share a disk."""

    words: list[object]
    project: Path
    slow: Path  # while this file is there, a step takes a fifth of a second longer

    def losses(self, name: str = "line") -> list[float]:
        """The sum of the losses of each epoch so far."""
        path = self.project / name / "metrics.jsonl"
        lines = map(json.loads, path.read_text().splitlines()) if path.exists() else []
        return [sum(line[f"train/{part}"] for part in ("box", "cls", "dfl")) for line in lines if "epoch" in line]


def is_possible() -> str:
    """Why there can be no network of namespaces here; empty if there can."""
    if not all(map(shutil.which, ("ip", "unshare"))):
        return "ip (package iproute2) or unshare is missing"
    done = subprocess.run(["ip", "netns", "add", name := f"yy{os.getpid()}"], capture_output=True, text=True)
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
    """The data.yaml of 24 training images."""
    return write_demo(tmp_path_factory.mktemp("data") / "line", seed=3, train=24, val=6, size=64)


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


def make_job(folder: Path, data: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that writes into `folder`; the processes see some variables."""
    monkeypatch.setenv("YOLOYARD_CACHE", str(folder / "cache"))
    monkeypatch.setenv("SLOW", str(folder / "slow"))
    (folder / "slow").touch()
    words = [*TINY[2:], "--model", f"{model}:Steady", "--data", data, "--epochs", EPOCHS, "--workers", 0]
    words[words.index("--batch") + 1] = BATCH
    words += ["--val-period", 1000, "--patience", 0, "--close-mosaic", 0]
    return Job(["train", *words], folder / "runs", folder / "slow")
