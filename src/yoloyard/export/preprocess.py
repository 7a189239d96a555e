"""preprocess.json, what a program must know to use the exported files, and client.py, a program that does.

The client lies in `templates` as it is copied. It knows numpy, OpenCV and ONNX Runtime, and nothing of this package.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from yoloyard.commands.model import settings_for
from yoloyard.common.files import write_whole_text
from yoloyard.config.settings import ModelConfig
from yoloyard.evaluation.metrics.showing import Showing
from yoloyard.export.job import Job
from yoloyard.runtimes.metadata import BOXES, DETECTIONS, INPUT, SCORES

CLIENT = Path(__file__).with_name("templates") / "client.py"
PIXELS = {
    "layout": "NCHW",
    "type": "float32",
    "orientation": "EXIF applied",
    "transparent": "composed on grey 114",
    "letterbox": {
        "scale": "min(H / height, W / width); sides rounded, half to even, at least 1",
        "interpolation": "bilinear (OpenCV's INTER_LINEAR)",
        "padding": 114,
        "position": "centred; an odd pixel of padding right and below",
    },
}


def facts_for_clients(job: Job, files: Mapping[str, Path]) -> dict[str, Any]:
    """The content of preprocess.json, as docs/export.md describes it. `files`: what was written, by target."""
    facts, metadata, stride = job.facts, job.metadata, max(job.facts.strides)
    shown = settings_for(ModelConfig(), {**metadata.get("evaluation", {}), **asdict(Showing.of(metadata))})
    maps = [f"map_{each}" for each in facts.strides]
    return {
        "format": 1,
        "yoloyard": facts.yoloyard,
        "model": metadata["model"],
        "weights_sha256": facts.weights_sha256,
        "licence": metadata.get("licence"),
        "files": {target: path.name for target, path in files.items()},
        "input": INPUT,
        "colours": facts.colours,
        "range": list(facts.input_range),
        **PIXELS,
        "imgsz": job.detector.input_size(job.config.imgsz or metadata.get("imgsz", 640)),
        "shape": facts.shape and list(facts.shape),
        "multiple": stride,
        "max_batch": facts.max_batch,
        "strides": list(facts.strides),
        "outputs": {"boxes": [BOXES, SCORES], "nms": [DETECTIONS], "maps": maps}[facts.outputs],
        "names": list(facts.names),
        # what is done to the outputs; a file with `detections` has done it already, and twice is as once
        "suppression": facts.suppression or {"conf": shown.conf, "iou": shown.iou, "max_det": shown.max_det},
    }


def write_client(job: Job, files: Mapping[str, Path]) -> list[Path]:
    """Write preprocess.json and, where there is an ONNX file with boxes, client.py into the job's folder.

    `files`: what was written, by target. Returns what this wrote. Raises UserError if the disk is full.
    """
    written = {job.folder / "preprocess.json": json.dumps(facts_for_clients(job, files), indent=1, ensure_ascii=False)}
    if job.facts.outputs != "maps" and any(path.suffix == ".onnx" for path in files.values()):
        written[job.folder / CLIENT.name] = CLIENT.read_text(encoding="utf-8")
    for path, text in written.items():
        write_whole_text(path, text)
    return list(written)
