"""`yoloyard job init`: a job file to begin with, from a run that is there or from what lies in this folder."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.files import cannot_write
from yoloyard.common.run_folder import read_run
from yoloyard.config.settings import TrainConfig, flat_settings, settings_of
from yoloyard.jobs.job_file import DECIDED
from yoloyard.machines.image.versions import number, tags
from yoloyard.planning.gpus import find_gpu

TEXT = """\
# A training as a job: `yoloyard plan {file}` says what it needs and costs, `yoloyard launch {file}` starts it.
# Paths start from this file's folder. docs/jobs.md explains each line.
{source}
train:  # settings of `yoloyard train`
{train}
{image}
resources:
  {gpu}
  count: {count}  # GPUs of each host
  nodes: {nodes}  # hosts
  # spot: true  # cheaper hosts that may be taken away at any time: needs `backup`
  # cloud: aws
  # region: us-east-1
  # disk: 200  # gigabytes

# data: s3://my-bucket/factory  # where the data lie, if not where data.yaml says: a folder, or an object store
# backup: s3://my-bucket/jobs/factory  # checkpoints and records go there; the job goes on from there on another host

limits:  # whatever comes first: the training saves, and the host is given back
  max_hours: 24
  # max_cost: 20  # dollars
  idle_minutes: 60  # without a step

# on: ssh://user@host  # or a cloud: aws, gcp, kubernetes ...; --on wins
"""


def write_job(run: Path | None, out: Path) -> None:
    """Write a job file with comments. Raises UsageError if there is one, UserError if it can't be written."""
    if run is not None:
        facts = _of_run(run, out.absolute().parent)
    else:
        found = sorted([*Path().glob("data.yaml"), *Path().glob("*/data.yaml")], key=lambda path: len(path.parts))
        data = os.path.relpath(found[0] if found else "data.yaml", out.absolute().parent)
        facts = {"train": {"data": data, "model": "yolo11n", "epochs": 100, "imgsz": 640}}
    train = yaml.safe_dump(facts["train"], sort_keys=False, allow_unicode=True).rstrip()
    gpu = facts.get("gpu")
    text = TEXT.format(
        file=out.name,
        source=f"# From the run {run}.\n" if run else "",
        train="\n".join(f"  {line}" for line in train.splitlines()),
        image=f"\nimage: {facts['image']}\n" if "image" in facts else "\n# image: torch2.8-cu128  # or the newest\n",
        gpu=f"gpu: {json.dumps(gpu)}" if gpu else "# gpu: RTX 4090  # as `yoloyard plan` recommends; none: a CPU",
        count=facts.get("count", 1),
        nodes=facts.get("nodes", 1),
    )
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(f"{out} is there already: --out names another file") from error
    except OSError as error:
        raise cannot_write(out, error) from error


def _of_run(run: Path, folder: Path) -> dict[str, Any]:
    """What a job needs to do the same as a run: settings that are not the defaults, image, hosts, GPUs."""
    found = read_run(run)
    if not found.settings:
        said = "; ".join(found.problems) or "it has no config.yaml"
        raise UserError(f"{run} is no run folder: {said}")
    defaults, known = flat_settings(TrainConfig()), settings_of(TrainConfig)
    left_out = {*DECIDED, "device", "processes", "device_path"}
    train = {
        name: value
        for name, value in found.settings.items()
        if name in known and name not in left_out and (value != defaults[name] or name == "data")
    }
    for name in ("data", "weights", "model", "transform"):
        file, colon, rest = str(train.get(name, "")).partition(":")
        if file and Path(file).exists():
            train[name] = os.path.relpath(file, folder) + colon + rest
    facts: dict[str, Any] = {"train": train}
    settings = found.settings
    try:
        environment: Mapping[str, Any] = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return facts  # of another version, or fetched in part
    facts["nodes"] = str(settings.get("nodes", "1")).rpartition(":")[2]
    facts["gpu"] = "none"
    if gpu := environment.get("accelerator"):
        facts["count"] = max(len(str(settings.get("device")).split(",")), int(settings.get("processes", 1)))
        try:
            facts["gpu"] = find_gpu(gpu).name
        except UsageError:
            del facts["gpu"]
    torch, cuda = str(environment.get("versions", {}).get("torch", "")), environment.get("cuda")
    of_torch = [tag for tag in tags().values() if number(tag.torch)[:2] == number(torch)[:2]]
    fitting = [tag for tag in of_torch if bool(tag.cuda) == bool(cuda and gpu)]
    if fitting:
        facts["image"] = min(fitting, key=lambda tag: tag.cuda != cuda).name
    return facts
