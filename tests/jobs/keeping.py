"""A job's folder with a made-up training, and a clock that a test moves."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yoloyard.jobs.launched import Launch, write_launch
from yoloyard.jobs.node.ledger import Clock

MADE_UP = (sys.executable, str(Path(__file__).with_name("made_up_training.py")))
LAUNCH: dict[str, Any] = {
    "name": "line", "run": "line", "on": "ssh://host", "train": {"data": "data.yaml"}, "commit": "c", "patch": None,
    "yoloyard": "1", "image": "torch2.8-cpu", "image_digest": None, "data": None, "data_yaml": None,
    "data_source": None, "backup": None,
    "nodes": 1, "gpus": 2, "gpu": "RTX 4090", "price": 2.0, "price_source": "--price", "max_hours": None,
    "max_cost": None, "idle_minutes": None, "time": "2026-11-30T09:00:00Z", "host": "laptop",
}  # fmt: skip


def job_folder(folder: Path, behaviour: str, **facts: Any) -> Path:
    """A job's folder as a place leaves it, with `facts` of its launch, and what its trainings do."""
    (folder / "source").mkdir(parents=True, exist_ok=True)
    (folder / "behaviour").write_text(behaviour)
    write_launch(folder / "launch.json", Launch(**{**LAUNCH, **facts}))
    return folder


def state_of(folder: Path) -> dict[str, Any]:
    """keeper.json."""
    state: dict[str, Any] = json.loads((folder / "keeper.json").read_text())
    return state


def starts(folder: Path) -> list[str]:
    """The arguments after --config of each training that was started."""
    return (folder / "starts").read_text().splitlines() if (folder / "starts").exists() else []


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until this holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


class MadeUpClock(Clock):
    """Hours pass while the keeper sleeps for a moment; none as long as `holds()` says so."""

    def __init__(self, speed: float = 60.0) -> None:
        self.time, self.speed = 1000.0, speed
        self.holds: Callable[[], bool] = lambda: False

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        time.sleep(0.01)
        self.time += 0 if self.holds() else seconds * self.speed
