"""preprocess.json, what a program must know to use the exported files, and client.py, a program that does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yoloyard.commands.model import shown_settings
from yoloyard.common.files import write_whole_text
from yoloyard.config.settings import ModelConfig
from yoloyard.data.pixels.decode import BACKGROUND
from yoloyard.export.job import Job
from yoloyard.runtimes.metadata import INPUT

CLIENT = Path(__file__).with_name("templates") / "client.py"  # not imported: it knows nothing of this package


def limits_of(config: ModelConfig, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """conf, iou and max_det by which `predict` shows the boxes of such a file; without suppression iou is 1."""
    shown = shown_settings(config, metadata)
    return {"conf": shown.conf, "iou": shown.iou, "max_det": shown.max_det}


def write_client(job: Job, files: Mapping[str, Path]) -> None:
    """Write preprocess.json and, where there is an ONNX file with boxes, client.py into the job's folder.

    `files`: what was written, by target. Raises UserError if the disk is full.
    """
    facts = job.facts.as_dict()
    document = {
        **{name: facts[name] for name in ("format", "yoloyard", "weights_sha256", "names", "strides", "max_batch")},
        "licence": job.metadata.get("licence"),
        "files": {target: path.name for target, path in files.items()},
        "input": INPUT,
        "outputs": job.facts.output_names,
        **{name: facts[name] for name in ("layout", "colours", "input_range", "letterbox", "shape")},
        "imgsz": job.imgsz,
        # what an input is a part of: tiles of this size, overlapping by this share; null: whole images
        "tile": job.metadata.get("tile"),
        "multiple": max(job.facts.strides),
        "fill": BACKGROUND,
        "interpolation": "bilinear",
        "needs_suppression": job.facts.needs_suppression,
        # of the outputs; a file with `detections` has done it already, and twice is as once
        "suppression": job.facts.suppression or limits_of(ModelConfig(), job.metadata),
    }
    write_whole_text(job.folder / "preprocess.json", json.dumps(document, indent=1, ensure_ascii=False))
    if job.facts.outputs != "maps" and any(path.suffix == ".onnx" for path in files.values()):
        write_whole_text(job.folder / CLIENT.name, CLIENT.read_text(encoding="utf-8"))
