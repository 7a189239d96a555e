"""A user's repository with jobs for a fake cloud, and what became of them."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from fake_cloud import REGIONS, FakeCloud
from host_job import write_data

BUCKET = "backups"
EPOCHS, STEPS = 14, 4  # of the run, of an epoch
SLOW_SECONDS = 2.0  # that a step takes longer on machines with the flag "slow"
SAVE_SECONDS = 3.0
NETWORK = f"""
import os, time

class Slow(Tiny):
    def forward(self, images):
        if self.training and os.path.exists("/etc/slow"):
            time.sleep({SLOW_SECONDS})
        return super().forward(images)
"""
TRAIN: dict[str, Any] = {
    "model": "slow.py:Slow", "data": "data/data.yaml", "imgsz": 64, "batch": 6, "epochs": EPOCHS, "amp": False,
    "tensorboard": False, "device": "cpu", "workers": 0, "save_minutes": SAVE_SECONDS / 60, "val_period": EPOCHS,
}  # fmt: skip


class Office:
    """A user's repository, from which jobs are launched."""

    def __init__(self, cloud: FakeCloud, folder: Path) -> None:
        self.cloud, self.folder = cloud, folder
        write_data(folder / "data")
        network = Path(__file__).with_name("tiny_network.py").read_text()
        (folder / "slow.py").write_text(network + NETWORK)
        self._git("init", "--quiet")
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", "Begin")

    def _git(self, *argv: str) -> None:
        command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.com", *argv]
        subprocess.run(command, cwd=self.folder, check=True)

    def write_job(self, name: str, **limits: float) -> None:
        """Write and commit NAME.yaml, a job on a spot machine with a CPU."""
        wanted = {"gpu": "none", "spot": True, "region": REGIONS[0]}
        job = {"train": TRAIN, "resources": wanted, "backup": f"s3://{BUCKET}/{name}", "limits": limits}
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(job))
        self._git("add", f"{name}.yaml")
        self._git("commit", "--quiet", "--message", f"Add {name}")

    def start(self, *argv: object) -> "subprocess.Popen[str]":
        """Start a command of yoloyard here."""
        return self.cloud.start("-m", "yoloyard", *argv, folder=self.folder, AWS_REGION=REGIONS[0])

    def run(self, *argv: object) -> str:
        """What a command of yoloyard prints that ends well."""
        process = self.start(*argv)
        out, _ = process.communicate()
        assert process.returncode == 0, out
        return out

    def status(self, name: str) -> dict[str, Any]:
        """What `jobs status` says of a job."""
        lines = self.run("jobs", "status", name, "--json").splitlines()
        return dict(json.loads("\n".join(lines[lines.index("{") :])))

    def record(self, name: str, key: str) -> str:
        """What lies in the backup of a job below a key; empty if there is nothing."""
        client = self.cloud.client("s3")
        try:
            return str(client.get_object(Bucket=BUCKET, Key=f"{name}/{key}")["Body"].read().decode())
        except client.exceptions.NoSuchKey:
            return ""

    def losses(self, name: str) -> list[float]:
        """The losses of each epoch of a job's run, as its backup has them."""
        return losses_in(self.record(name, f"{name}/metrics.jsonl"))

    def saved_steps(self, name: str) -> int:
        """How many steps of a job's run its backup has in its newest checkpoint."""
        client, prefix = self.cloud.client("s3"), f"{name}/{name}/checkpoints/"
        keys = [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]
        if not keys:
            return 0
        manifest = json.loads(self.record(name, max(keys).removeprefix(f"{name}/")))
        return int(STEPS * manifest["epoch"] + manifest["position"] // TRAIN["batch"])

    def state(self, name: str) -> str:
        """The state of a job, as its backup says it; empty before its first host."""
        return str(json.loads(self.record(name, "job/keeper.json") or "{}").get("state", ""))

    def machine_of(self, name: str) -> Path:
        """The home on the machine that a job has."""
        instance = next(each for each in self.instances(name) if each["InstanceId"] in self.cloud.machines)
        process = self.cloud.machines[instance["InstanceId"]].process
        return Path(f"/proc/{psutil.Process(process.pid).children()[0].pid}/root/home/ubuntu")

    def instances(self, name: str) -> list[dict[str, Any]]:
        """The instances of a job that still cost something."""
        return [each for each in self.cloud.instances() if is_of(name, each)]

    def nothing_left_of(self, name: str) -> bool:
        """Whether the cloud has no instance and no disk of a job any more."""
        disks = [
            disk for region in REGIONS for disk in self.cloud.client("ec2", region).describe_volumes()["Volumes"]
            if is_of(name, disk)
        ]  # fmt: skip
        return not self.instances(name) and not disks


def tags_of(thing: dict[str, Any]) -> dict[str, str]:
    """The tags of something in the cloud."""
    return {each["Key"]: each["Value"] for each in thing.get("Tags", [])}


def is_of(name: str, thing: dict[str, Any]) -> bool:
    """Whether something in the cloud has the tag of a job."""
    return tags_of(thing).get("yoloyard", "").startswith(f"yoloyard-{name}-")


def losses_in(metrics: str) -> list[float]:
    """The sum of the losses of each epoch, of the text of a metrics.jsonl."""
    lines = map(json.loads, metrics.splitlines())
    return [sum(line[f"train/{part}"] for part in ("box", "cls", "dfl")) for line in lines if "train/box" in line]


def wait_until(is_so: Callable[[], object], what: str, seconds: float = 420.0) -> None:
    """Wait until something is so; fails with `what` after so many seconds."""
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            pytest.fail(f"after {seconds:.0f} s still not so: {what}")
        time.sleep(0.5)
