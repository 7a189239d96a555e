"""A job over ssh with nothing made up: an environment from the locks, doctor, a training. It installs packages."""

import shutil
from pathlib import Path

import pytest
from test_over_ssh import git, laptop_with_job, status

from commands import TINY_NETWORK
from ssh_host import missing, ssh_host
from yoloyard.jobs.setting_up import venv_name
from yoloyard.machines.image.versions import find_tag

JOB = """name: real
train: --model tiny_network.py:Tiny --data demo/data.yaml --imgsz 64 --batch 8 --epochs 2 --no-amp --device cpu
image: cpu
on: {on}
"""


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_an_environment_is_made_once_and_trains(tmp_path: Path) -> None:
    with ssh_host() as host:
        laptop = laptop_with_job(tmp_path / "laptop", host, "real")
        laptop.run("demo", "demo")
        shutil.copy(TINY_NETWORK.removesuffix(":Tiny"), laptop.folder)
        (laptop.folder / "job.yaml").write_text(JOB.format(on=host.address))
        git(laptop.folder, "add", ".")
        git(laptop.folder, "commit", "-qm", "A network")
        venv = host.home / ".yoloyard/venvs" / venv_name(find_tag("cpu"))
        (venv / "bin").mkdir(parents=True)  # one that somebody's launch has left half-made
        (venv / "bin/python").write_text("no program")
        host.own()
        assert f"making {venv}" in laptop.run("launch")
        laptop.run("jobs", "logs", "-f", "real")
        seen = status(laptop, "real")
        assert (seen["state"], seen["epoch"]) == ("finished", 2), seen
        laptop.run("jobs", "fetch", "real")
        assert (laptop.folder / "runs/real/weights/best.safetensors").exists()
        assert (laptop.folder / "runs/real/report.html").exists()
        assert f"making {venv}" not in laptop.run("launch")
        assert status(laptop, "real")["run"] == "real-2"
