"""preprocess.json, what a program must know to use the exported files, and client.py, a program that does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yoloyard.commands.model import shown_settings
from yoloyard.common.files import write_whole_text
from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.config.settings import ModelConfig
from yoloyard.data.pixels.decode import BACKGROUND
from yoloyard.export.job import Job
from yoloyard.runtimes.metadata import INPUT

CLIENT = Path(__file__).with_name("templates") / "client.py"  # not imported: it knows nothing of this package


def limits_of(config: ModelConfig, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """conf, iou and max_det by which `predict` shows the boxes of such a file; without suppression iou is 1."""
    shown = shown_settings(config, metadata)
    return {"conf": shown.conf, "iou": shown.iou, "max_det": shown.max_det}


def colours_of(pixels: PixelSpec) -> str:
    """What the channels of the input are."""
    return "RGB" if pixels.has_colours else "grey" if pixels.channels == 1 else f"{pixels.channels} as in the data"


def scaling_of(pixels: PixelSpec) -> str:
    """How values of a file become an input of 0..1, for whoever writes a program."""
    if pixels.window is None:
        depth = "the smallest of 8, 10, 12, 14 and 16 bits that holds the brightest value of the image"
        deep = "value / (2^depth - 1)" if pixels.bits == 16 else "(value >> (depth - 8)) / 255"
        return f"of files of 8 bits value / 255; of 16 bits {deep}, depth is {depth}"
    where = "{:g} and {:g}".format(*pixels.window)
    where = f"the percentiles {where} of all values of the image" if pixels.percent else where
    return (
        f"(value - low) / (high - low), clipped to 0..1 and rounded to 1 / {pixels.largest}; low and high are {where}"
    )


def write_client(job: Job, files: Mapping[str, Path]) -> None:
    """Write preprocess.json and, where there is an ONNX file with boxes, client.py into the job's folder.

    `files`: what was written, by target. Raises UserError if the disk is full.
    """
    facts, pixels = job.facts.as_dict(), PixelSpec.of(job.metadata)
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
        "pixels": pixels.as_dict(),
        "scaling": scaling_of(pixels),
        "fill": BACKGROUND * (pixels.largest // 255),
        "interpolation": "bilinear",
        "needs_suppression": job.facts.needs_suppression,
        # of the outputs; a file with `detections` has done it already, and twice is as once
        "suppression": job.facts.suppression or limits_of(ModelConfig(), job.metadata),
    }
    write_whole_text(job.folder / "preprocess.json", json.dumps(document, indent=1, ensure_ascii=False))
    if job.facts.outputs != "maps" and any(path.suffix == ".onnx" for path in files.values()):
        write_whole_text(job.folder / CLIENT.name, CLIENT.read_text(encoding="utf-8"))
