"""preprocess.json, what a program must know to use the exported files, and client.py, a program that does."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from yoloyard.commands.model import settings_for
from yoloyard.common.files import write_whole_text
from yoloyard.config.settings import ModelConfig
from yoloyard.evaluation.metrics.showing import Showing
from yoloyard.export.job import Job
from yoloyard.runtimes.metadata import BOXES, DETECTIONS, INPUT, SCORES

CLIENT = Path(__file__).with_name("templates") / "client.py"  # not imported: it knows nothing of this package
OUTPUTS = {"boxes": [BOXES, SCORES], "nms": [DETECTIONS]}


def write_client(job: Job, files: Mapping[str, Path]) -> list[Path]:
    """Write preprocess.json and, where there is an ONNX file with boxes, client.py into the job's folder.

    `files`: what was written, by target. Returns what this wrote. Raises UserError if the disk is full.
    """
    facts = job.facts.as_dict()
    shown = settings_for(ModelConfig(), {**job.metadata.get("evaluation", {}), **asdict(Showing.of(job.metadata))})
    document = {
        **{name: facts[name] for name in ("format", "yoloyard", "weights_sha256", "names", "strides", "max_batch")},
        "licence": job.metadata.get("licence"),
        "files": {target: path.name for target, path in files.items()},
        "input": INPUT,
        "outputs": OUTPUTS.get(job.facts.outputs, [f"map_{stride}" for stride in job.facts.strides]),
        **{name: facts[name] for name in ("layout", "colours", "input_range", "letterbox", "shape")},
        "imgsz": job.imgsz,
        "multiple": max(job.facts.strides),
        "fill": 114,
        "interpolation": "bilinear",
        # of the outputs; a file with `detections` has done it already, and twice is as once
        "suppression": job.facts.suppression or {name: getattr(shown, name) for name in ("conf", "iou", "max_det")},
    }
    written = {job.folder / "preprocess.json": json.dumps(document, indent=1, ensure_ascii=False)}
    if job.facts.outputs in OUTPUTS and any(path.suffix == ".onnx" for path in files.values()):
        written[job.folder / CLIENT.name] = CLIENT.read_text(encoding="utf-8")
    for path, text in written.items():
        write_whole_text(path, text)
    return list(written)
