"""What was launched: the record that goes along to each host, and stays beside the job file as its lock."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "launch.json"  # in a job's folder on a host


@dataclass(frozen=True)
class Launch:
    """One launch of a job. A launch that goes on with a run has the same `run` as the one before."""

    name: str  # of the job
    run: str  # of the run folder, and of its place below `backup`: NAME, NAME-2 ...
    on: str  # ssh://user@host:port, a cloud, or kubernetes
    train: Mapping[str, Any]  # overrides of TrainConfig; paths are relative to the checkout: ../data.yaml
    commit: str  # of the user's repository
    patch: str | None  # SHA-256 of the uncommitted changes that went along
    yoloyard: str  # version and commit of this package
    image: str  # the tag; empty: the place chooses by the host's driver and GPU
    image_digest: str | None  # sha256:... of the image in a registry, or locks:... of what images and venvs are made of
    data: str | None  # its fingerprint
    data_yaml: str | None  # the text of FOLDER/data.yaml on a host; None where `train.data` leads into the data
    data_source: str | None  # the object-store prefix that it comes from; None: it was copied from here
    backup: str | None  # an object-store prefix; the run is copied to BACKUP/RUN, the job's records to BACKUP/job
    nodes: int
    gpus: int  # of each host
    gpu: str | None  # its name in gpus.toml
    price: float | None  # dollars an hour of one host
    price_source: str | None
    max_hours: float | None
    max_cost: float | None
    idle_minutes: float | None
    time: str  # of the launch, ISO 8601, UTC
    host: str  # where it was launched


def write_launch(path: Path, launch: Launch) -> None:
    """Write the record as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(launch), indent=1), encoding="utf-8")


def read_launch(path: Path) -> Launch:
    """The record of a file. What a newer version has written beside is left out."""
    return parse_launch(json.loads(path.read_text(encoding="utf-8")))


def parse_launch(document: Mapping[str, Any]) -> Launch:
    """The record of a JSON document. What a newer version has written beside is left out."""
    values: dict[str, Any] = {item.name: document.get(item.name) for item in dataclasses.fields(Launch)}
    return Launch(**values)
