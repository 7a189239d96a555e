"""Commands for the tests of the image, and a container that runs, with how to get in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCREENSHOTS = ROOT / "build" / "test-image"
BASE = "localhost/yoloyard-base:bookworm"
REPOSITORY = "localhost/yoloyard-test"
OWNER = 1234  # of the project folder: somebody who is neither root nor the first user of a machine

# Podman inside a container or a small virtual machine: no limits above those that are there already.
CONTAINERS_CONF = """[engine]
runtime = "runc"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
"""
BUILD_OPTIONS = ("--network=host", "--runtime=runc", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096")


def say(text: str) -> None:
    print(f"\n  {text}", flush=True)


def run(*words: object, seconds: float = 120, folder: Path | None = None, **environment: str) -> str:
    """The output of a command that must succeed."""
    done = attempt(*words, seconds=seconds, folder=folder, **environment)
    assert done.returncode == 0, f"{' '.join(map(str, words))} gave {done.returncode}:\n{done.stdout[-6000:]}"
    return done.stdout


def attempt(
    *words: object, seconds: float = 120, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command with all that it printed, which may fail."""
    return subprocess.run(
        list(map(str, words)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        cwd=folder,
        env={**os.environ, **environment},
        check=False,
    )


def yoloyard(*words: object, seconds: float = 120, folder: Path | None = None) -> str:
    return run(sys.executable, "-m", "yoloyard", *words, seconds=seconds, folder=folder)


@dataclass
class Container:
    """A container that runs, and how to get in."""

    folder: Path  # the project folder on this side
    output: str  # of `yoloyard up`
    key: Path  # the private key
    started: float  # time.monotonic() when `up` began
    seconds: float  # how long `up` took

    def address(self, pattern: str) -> str:
        found = re.search(pattern, self.output)
        assert found, f"no {pattern} in what `up` printed:\n{self.output}"
        return found[0]

    @property
    def jupyter(self) -> str:
        """The address with the token."""
        return self.address(r"http://127\.0\.0\.1:\d+/lab\?token=[\w-]+")

    @property
    def tensorboard(self) -> str:
        line = next(line for line in self.output.splitlines() if "tensorboard" in line.lower())
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found
        return found[0]

    @property
    def ssh_port(self) -> str:
        return self.address(r"ssh -p \d+ yard@127\.0\.0\.1").split()[2]

    def ssh(self, *words: str, key: Path | None = None, user: str = "yard") -> subprocess.CompletedProcess[str]:
        """A command through SSH with one key and nothing else."""
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "IdentitiesOnly=yes", "LogLevel=ERROR"]
        flags = [word for option in (*options, "PasswordAuthentication=no") for word in ("-o", option)]
        return attempt("ssh", *flags, "-i", key or self.key, "-p", self.ssh_port, f"{user}@127.0.0.1", *words)
