"""Whole runs by the command line: several processes, one that dies, signals, too little memory, two at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from gpu_parts.checks import Check
from gpu_parts.common import ROOT

from yoloyard.demo.write import write_demo

LATE_SECONDS = 50  # that a rank's first step takes longer; once 40 ended a run
MEMORY = 40 * 2**20  # bytes: too few for an image
MEMORY_OF_PARTS = 300 * 2**20  # too few for a batch
LIMIT = 90  # seconds of one run
# The network does what the environment says, in its first forward or its third: SLEEP is late, DIE is killed.
NETWORK = """\
import os, pathlib, signal, time
import torch
from torch import nn
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorFreeHead

class Small(Detector):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 9, stride=8, padding=4)
        self.down = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8)) for _ in range(2))
        self.head = AnchorFreeHead((8, 8, 8), num_classes, (8, 16, 32), depthwise=False)
        self.count = 0

    def forward(self, x):
        maps = [self.stem(x)]
        for down in self.down:
            maps.append(down(maps[-1]))
        if self.training:
            self.happens(x.device)
        return self.head(maps)

    @torch.compiler.disable
    def happens(self, device):
        self.count += 1
        rank = int(os.environ.get("RANK", "0"))
        if self.count == 1 and "DRAW" in os.environ:
            pathlib.Path(os.environ["DRAW"], str(rank)).write_text(str(torch.rand(1, device=device).item()))
        if self.count == 1 and rank == 1:
            time.sleep(float(os.environ.get("SLEEP", "0")))
        if self.count == 3 and rank == 1 and "DIE" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
"""


class Runs:
    """Short trainings in a temporary folder."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.processes = 2 if device.type == "cpu" or torch.cuda.device_count() > 1 else 1
        self._kept = tempfile.TemporaryDirectory()
        self.folder = Path(self._kept.name)
        write_demo(self.folder / "demo", train=16, val=4, size=96)
        (self.folder / "network.py").write_text(NETWORK)

    def train(
        self, program: tuple[str, ...] = ("-m", "yoloyard"), variables: dict[str, object] | None = None, **words: object
    ) -> Started:
        """Start a training of many epochs, unless `words` say otherwise."""
        own: dict[str, object] = {"data": "demo/data.yaml", "model": "network.py:Small", "device": self.device.type}
        own |= {"device_path": "accelerator"}  # also where a rehearsal has a CPU alone
        own |= {"imgsz": 64, "batch": 4, "epochs": 5000, "workers": 1, "tensorboard": False, **words}
        return self.start(*program, "train", *(f"{name}={value}" for name, value in own.items()), **(variables or {}))

    def start(self, *command: object, **variables: object) -> Started:
        """Start Python with `command` and more environment."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
        environment |= {name: str(value) for name, value in variables.items()}
        return Started([sys.executable, *map(str, command)], self.folder, environment)


class Started:
    """A run in a process group of its own; what it has written so far is in `log`."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        descriptor, name = tempfile.mkstemp(dir=folder, suffix=".log")
        self.log = Path(name)
        with os.fdopen(descriptor, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def said(self) -> str:
        """All that it has written."""
        return self.log.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Raises AssertionError if it ends before, or not within the limit."""
        end = time.monotonic() + LIMIT
        while not condition():
            assert self.process.poll() is None, f"it ended: {self.said()[-1500:]}"
            if time.monotonic() > end:
                os.killpg(self.process.pid, signal.SIGKILL)
                raise AssertionError(f"nothing for {LIMIT} s: {self.said()[-1500:]}")
            time.sleep(0.1)

    def wait_for(self, text: str) -> None:
        """Until it has written `text`."""
        self.wait_until(lambda: text in self.said())

    def end(self, code: int | None, *texts: str) -> str:
        """Its output after it has ended with `code` (None: any but 0) and said all of `texts`."""
        try:
            found = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"no end within {LIMIT} s: {self.said()[-1500:]}") from None
        said = self.said()
        assert found == code or (code is None and found), f"exit code {found}: {said[-1500:]}"
        for text in texts:
            assert text in said, f"{text!r} was not said: {said[-1500:]}"
        return said


def by_torchrun(runs: Runs) -> None:
    """README's line; 1: the device has an index; 7: ranks draw apart."""
    program = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={runs.processes}", "-m", "yoloyard")
    draws = runs.folder / "draws"
    draws.mkdir()
    runs.train(program, {"DRAW": draws}, epochs=1, name="torchrun").end(0, "report")
    drawn = [file.read_text() for file in draws.iterdir()]
    assert len(drawn) == runs.processes
    assert len(set(drawn)) == runs.processes, "the ranks draw the same numbers"


def several(runs: Runs) -> None:
    """10: a rank whose first step takes long; 13: no complaint about a group that was left."""
    seconds = 2 if runs.device.type == "cpu" else LATE_SECONDS
    run = runs.train(variables={"SLEEP": seconds}, processes=2, name="several")
    run.wait_for("epoch 1/5000 ")
    run.process.send_signal(signal.SIGINT)
    said = run.end(130, "everything is saved")
    assert "destroy_process_group" not in said, said[-1500:]


def death(runs: Runs) -> str:
    """11: one that is killed is named, though the others wait for it on the device."""
    said = runs.train(variables={"DIE": 1}, processes=2, name="death").end(None, "process 1", "was killed or hangs")
    return next(line for line in said.splitlines() if "was killed or hangs" in line)


def memory(runs: Runs, compiled: bool) -> str:
    """8: too little memory even for an image is said to be that, with what to do; also while --compile is tried."""
    run = with_memory(runs, MEMORY, name="memory", compile=compiled)
    said = run.end(1, "too little memory", "--imgsz")
    assert "does not work here" not in said, said[-1500:]
    return said.splitlines()[-1][:300]


def memory_of_parts(runs: Runs) -> str:
    """A device without room for the batch: the run ends well, in smaller parts."""
    said = with_memory(runs, MEMORY_OF_PARTS, name="parts", epochs=1).end(0, "report")
    return next(line for line in said.splitlines() if "out of memory: from here on" in line)


def with_memory(runs: Runs, size: int, **words: object) -> Started:
    """A run of large images that torch gives so many bytes of the device."""
    limit = f"import torch; torch.cuda.set_per_process_memory_fraction({size} / torch.cuda.mem_get_info()[1])"
    program = ("-c", f"{limit}; from yoloyard.cli.main import main; main()")
    return runs.train(program, None, imgsz=1024, batch=16, **words)


def signals_and_locks(runs: Runs) -> None:
    """14: SIGTERM to all processes, workers too, ends in a save; a run that goes on is not begun twice."""
    run = runs.train(name="signals")
    run.wait_for("epoch 1/5000 ")
    os.killpg(run.process.pid, signal.SIGTERM)
    run.end(143, "everything is saved")
    going = [runs.start("-m", "yoloyard", "train", "--resume", "runs/signals") for _ in range(2)]
    end = time.monotonic() + LIMIT
    while all(each.process.poll() is None for each in going) and time.monotonic() < end:
        time.sleep(0.1)
    refused = [each for each in going if each.process.poll() is not None]
    try:
        assert len(refused) == 1, "both go on in one folder" if not refused else refused[0].said()[-1500:]
        refused[0].end(None, "in use")
    finally:
        for each in going:
            if each.process.poll() is None:
                each.process.send_signal(signal.SIGINT)
                each.process.wait(LIMIT)


def of_runs(device: torch.device) -> dict[str, Check]:
    """The checks of this file; those that want two GPUs or one only where these are."""
    runs = Runs(device)
    checks: dict[str, Check] = {
        "a training by torchrun": partial(by_torchrun, runs),
        "SIGTERM, and two resumes of one run": partial(signals_and_locks, runs),
    }
    if device.type == "cuda":
        checks["too little memory"] = partial(memory, runs, False)
        checks["too little memory for a batch"] = partial(memory_of_parts, runs)
        checks["too little memory, --compile"] = partial(memory, runs, True)
    if runs.processes == 2:
        checks["one of two processes dies"] = partial(death, runs)
        checks["one of two processes is late, then Ctrl-C"] = partial(several, runs)
    return checks
