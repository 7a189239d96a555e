"""job.yaml: everything that decides a job, in one file that lies in git."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Resources:
    """What each host of a job has. None leaves the choice to the plan or to the engine."""

    gpu: str | None = None  # a name of gpus.toml; "none" for a CPU
    count: int = 1  # GPUs of each host
    nodes: int = 1  # hosts
    spot: bool = False
    region: str | None = None
    cloud: str | None = None
    disk: int | None = None  # gigabytes


@dataclass(frozen=True)
class Limits:
    """When a job ends at the latest. None: no limit."""

    max_hours: float | None = None  # of all attempts together
    max_cost: float | None = None  # dollars, of all hosts and attempts together
    idle_minutes: float | None = None  # without a step


@dataclass(frozen=True)
class Job:
    """A job file. Relative paths in it start from its folder."""

    path: Path
    name: str  # of its `name:`, else of the file, or of its folder if the file is called job.yaml
    train: Mapping[str, Any]  # overrides of TrainConfig, checked
    image: str | None = None  # a tag of versions.toml; None: the newest that fits
    resources: Resources = field(default_factory=Resources)
    data: str | None = None  # a local folder or an object-store prefix; None: the folder of train.data
    backup: str | None = None  # an object-store prefix
    limits: Limits = field(default_factory=Limits)
    on: str | None = None  # where it runs: ssh://user@host[:port], or a cloud; --on wins


def read_job(path: Path) -> Job:
    """The job of a file. Raises UsageError with line and column."""
    document = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    name = document.pop("name", None) or (path.absolute().parent.name if path.stem == "job" else path.stem)
    resources, limits = Resources(**document.pop("resources", {})), Limits(**document.pop("limits", {}))
    return Job(path, name, document.pop("train"), resources=resources, limits=limits, **document)
