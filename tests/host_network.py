"""Hosts for tests: namespaces of this host's network, process numbers and host names, joined by a bridge."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

BEAT_SECONDS = 2  # in place of 5: what waits for signs of life takes less time in tests


def ip(*words: str) -> None:
    """Run `ip` of iproute2."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Host:
    """A host with an address, a name of its own, and process numbers from 1."""

    def __init__(self, network: "Network", number: int, folder: Path) -> None:
        self.namespace, self.folder, self._network = f"{network.name}-{number}", folder, network
        self.address = f"{network.prefix}.{number}"
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[str] = []  # of all its commands
        self._since = 0
        self._port = f"p{number}"
        folder.mkdir(exist_ok=True)
        ip("netns", "add", self.namespace)
        ip("-n", network.switch, "link", "add", self._port, "type", "veth", "peer", "eth0", "netns", self.namespace)
        ip("-n", network.switch, "link", "set", self._port, "up")
        ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.namespace, "link", "set", device, "up")
        self.connect()

    def cut(self) -> None:
        """From here on what is sent is lost, and nobody is told."""
        ip("-n", self._network.switch, "link", "set", self._port, "nomaster")

    def connect(self) -> None:
        """Undo `cut`."""
        ip("-n", self._network.switch, "link", "set", self._port, "master", "bridge")

    def start(self, *words: object, **variables: str) -> None:
        """Start a command of yoloyard here. All hosts have the same name and the same process numbers."""
        self.connect()
        inside = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
        command = [*inside, 'hostname worker && exec "$@"', "sh", sys.executable, "-m", "yoloyard", *map(str, words)]
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *command],
            cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1",
                 "YOLOYARD_BEAT_SECONDS": str(BEAT_SECONDS), **variables},
        )  # fmt: skip
        self._since = len(self.lines)
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line.rstrip())

    @property
    def launcher(self) -> psutil.Process:
        """The command itself, process 1 of its namespace."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children()[0]

    @property
    def worker(self) -> psutil.Process:
        """The first process of the run here."""
        return self.launcher.children()[0]

    def kill(self) -> None:
        """As when the power fails: nothing of it says goodbye. `start` brings it back."""
        self.cut()
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def wait_for(self, text: str, seconds: float = 90.0) -> str:
        """The first line with `text` since the command has started; fails after so many seconds."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            has_ended = self.process is not None and self.process.poll() is not None
            if found := next((line for line in self.lines[self._since :] if text in line), None):
                return found
            if has_ended:
                until = min(until, time.monotonic() + 1)  # its last lines may still be on the way
            time.sleep(0.05)
        pytest.fail(f"no {text!r} in {seconds} s:\n" + "\n".join(self.lines))

    def end(self, seconds: float = 90.0) -> int:
        """Wait for the end of the command: its exit code."""
        assert self.process is not None
        return self.process.wait(seconds)


class Network:
    """A switch, and hosts at it."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.prefix, self.switch = name, f"10.77.{number}", f"{name}-switch"
        self.hosts: list[Host] = []
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")

    def add(self, folder: Path) -> Host:
        """Another host, which works in `folder`."""
        self.hosts.append(host := Host(self, len(self.hosts) + 1, folder))
        return host

    def remove(self) -> None:
        """Kill all that runs, and remove the namespaces."""
        for host in self.hosts:
            if host.process is not None and host.process.poll() is None:
                host.process.kill()
                host.process.wait()
        for name in (self.switch, *(host.namespace for host in self.hosts)):
            ip("netns", "delete", name)
