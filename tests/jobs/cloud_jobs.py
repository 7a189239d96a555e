"""A launch to a cloud that never starts, for what is made of it."""

import dataclasses
from pathlib import Path
from typing import Any

from yoloyard.jobs.data_set import DataSet
from yoloyard.jobs.job_file import Job, Resources
from yoloyard.jobs.launched import Launch
from yoloyard.jobs.prepare import Prepared
from yoloyard.jobs.source import Source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LAUNCH = Launch(
    name="cracks", run="cracks-2", on="aws", train={"model": "yolo11n", "data": "../data.yaml"}, commit=COMMIT,
    patch=None, yoloyard="0.1.0-0", image="", image_digest=None, data="sha256:0123456789abcdef",
    data_yaml="path: data\n", data_source="s3://factory/cracks",
    backup="s3://factory/runs/cracks", nodes=1, gpus=1, gpu="T4", price=0.6,
    price_source="--price", max_hours=8, max_cost=None, idle_minutes=30, time="2026-01-02T09:00:00+00:00",
    host="laptop",
)  # fmt: skip


def prepared(wanted: Resources = Resources(gpu="T4"), source: Source | None = None, **changes: Any) -> Prepared:  # noqa: B008
    """A launch that asks for `wanted`, with these fields of it changed."""
    of_wanted = {"nodes": wanted.nodes, "gpu": wanted.gpu, "gpus": 0 if wanted.gpu == "none" else wanted.count}
    launch = dataclasses.replace(LAUNCH, **(of_wanted | changes))
    job = Job(Path("job.yaml"), launch.name, launch.train, resources=wanted, backup=launch.backup)
    data = DataSet("../data.yaml", launch.data_yaml, str(launch.data), None, source=launch.data_source)
    return Prepared(launch, job, source or Source(Path("/"), launch.commit, None, (), None), data, None, ())
