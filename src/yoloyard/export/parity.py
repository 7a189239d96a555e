"""Do exported files find what the weights find? Boxes, scores and mAP of each beside torch's, and what is too far off.

torch and the files get equal pixels: letterboxed to the one shape of the files, or to rectangles where they take any.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from yoloyard.commands.model import settings_for
from yoloyard.commands.val import DEFAULT_BATCH
from yoloyard.common.cores import processor, usable_cores
from yoloyard.common.device import images_at_once
from yoloyard.common.files import write_whole_text
from yoloyard.common.image_size import ImageSize, shape_of
from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.common.structures import Batch, Detections, Sample
from yoloyard.common.tiles import TileSpec
from yoloyard.common.versions import versions
from yoloyard.config.settings import ModelConfig
from yoloyard.data.index.tiled import tiled
from yoloyard.data.loading.batches import collate
from yoloyard.data.loading.loader import make_val_loader
from yoloyard.data.pixels.augment import letterbox, minimal_shape
from yoloyard.demo.write import demo_image
from yoloyard.evaluation.metrics.coco import evaluate
from yoloyard.evaluation.metrics.matching import Truth, gather_found, match_boxes, overlapping_pairs
from yoloyard.evaluation.metrics.showing import MIN_CONF, Showing
from yoloyard.evaluation.report.page import write_page
from yoloyard.evaluation.validate import predict_all
from yoloyard.export.job import Job
from yoloyard.runtimes.load import FORMATS, load_runtime

log = logging.getLogger(__name__)

TOLERANCES = {"float32": 1e-3, "float16": 1e-3, "int8": 0.01}  # of mAP50-95
CLASS_TOLERANCE, CLASS_BOXES = 0.03, 20  # of a class's mAP50-95 in int8, if it has at least so many boxes
# Without labels, for float32. Its 7 digits round coordinates by less than 0.01 pixels and scores by less than 1e-4;
# other pixels or another decoding move them further than that.
MAX_PIXELS, MAX_SCORE = 0.5, 1e-3
TOLERANCES_SAID = (
    f"mAP50-95 of float32 and float16 {TOLERANCES['float32']}, int8 may lose {TOLERANCES['int8']}, and of a class with "
    f"{CLASS_BOXES} boxes or more {CLASS_TOLERANCE}; without --data {MAX_PIXELS} pixels, {MAX_SCORE} of score (float32)"
)
DRAWINGS = 8
UNJUDGED = "not judged"


@dataclass(frozen=True)
class Parity:
    """The content of parity.json, a line for each file and figure that is too far off, and the page."""

    document: dict[str, Any]
    failures: tuple[str, ...]
    page: Path


def compare(job: Job, files: Mapping[str, Path]) -> Parity:
    """Compare `files`, by target, with the weights of `job`; writes parity.json and parity.html into its folder.

    With --data on its val images and by mAP50-95, else on drawings of the demo. What can't run here is listed. Raises
    UsageError or UserError for data or files that can't be used.
    """
    inside = job.facts.suppression
    settings = settings_for(ModelConfig(), {**job.metadata.get("evaluation", {}), **(inside or {})})
    imgsz, stride = job.imgsz, max(job.facts.strides)
    fixed = shape_of(imgsz) if job.facts.shape else None
    batches: Iterable[Batch] = ()
    tiling = None
    if job.labelled:
        index, order = job.labelled
        at_once = images_at_once(job.reference.device, imgsz)
        tiles = tiled(index, TileSpec.of(job.metadata))
        tiling = tiles.tiling
        batches = make_val_loader(tiles, imgsz, DEFAULT_BATCH, stride, at_once=at_once, fixed_shape=fixed)
    else:
        batches = [_drawing(number, fixed, imgsz, stride, PixelSpec.of(job.metadata)) for number in range(DRAWINGS)]

    def measured(network: Any) -> tuple[dict[int, Detections], dict[str, Any]]:
        """Detections and, with labels, their figures."""
        found = predict_all(network, batches, settings, multi_label=inside is None, tiling=tiling)
        if not job.labelled:
            return found, {}
        named = {image: replace(each, labels=torch.tensor(order)[each.labels]) for image, each in found.items()}
        metrics = evaluate(
            index, named, settings.max_det, Showing.of(job.metadata).within(settings), settings.suppression
        )
        return found, {**metrics.figures(), "classes": [asdict(row) for row in metrics.classes]}

    expected, figures = measured(job.reference)
    boxes = sum(int((each.scores > MIN_CONF).sum()) for each in expected.values())
    rows: list[dict[str, Any]] = []
    for target, path in files.items():
        row = {"target": target, "file": path.name, "bytes": _bytes(path), "failures": [], "result": "not run here"}
        rows.append(row)
        row["run"] = path.suffix in FORMATS and job.facts.outputs != "maps"
        if row["run"]:
            network = load_runtime(path, "cpu")
            found, row["figures"] = measured(network)
            row |= {"precision": network.metadata["file"]["precision"], **differences(expected, found)}
            row["failures"] = judge(row, figures, job)
            is_judged = bool(figures) or (boxes > 0 and row["precision"] == "float32")
            row["result"] = "too far off" if row["failures"] else "within tolerance" if is_judged else UNJUDGED
    if any(row["result"] == UNJUDGED for row in rows):
        why = "float32 alone is judged by boxes" if boxes else "the weights find no box in drawings of the demo"
        log.info(f"not judged: {why}; --data data.yaml judges by mAP50-95")
    failures = tuple(f"{row['file']}: {line}" for row in rows for line in row["failures"])
    document = {
        "facts": {
            "Weights": f"{job.weights.name}, SHA-256 {job.facts.weights_sha256}",
            "Data": f"{job.config.data}, val" if job.config.data else "drawings of the demo",
            "Input": " x ".join(map(str, job.facts.shape or ("any multiples of", stride))),
            "Machine": f"{processor()['name']}, {usable_cores()} cores",
            "Versions": ", ".join(
                f"{name} {version}" for name, version in versions("onnx", "onnxruntime", "openvino", "nncf").items()
            ),
            "Tolerances": TOLERANCES_SAID,
        },
        "images": len(expected),
        "boxes": boxes,
        "min_score": MIN_CONF,
        "torch": figures,
        "files": rows,
        "failures": failures,
    }
    write_whole_text(job.folder / "parity.json", json.dumps(document, indent=1))
    page = job.folder / "parity.html"
    write_page(page, "parity.html.j2", **document, title=f"Exports of {job.weights.name}")
    return Parity(document, failures, page)


def differences(expected: Mapping[int, Detections], found: Mapping[int, Detections]) -> dict[str, Any]:
    """How far `found` is from `expected`, by image, in boxes of which one of both at least scores above MIN_CONF.

    Boxes match by class, an IoU of at least 0.5, and what is nearest in IoU and score: boxes that were cut at the
    image's edge may be equal. Those without a match are counted on both sides, if a pixel or more of them is left.
    """
    ours, theirs = (gather_found(each, max([*expected, *found]) + 1) for each in (expected, found))
    truth = Truth(ours.boxes_xyxy, ours.labels, ours.starts, np.zeros(len(ours.labels), bool))
    pairs = overlapping_pairs(theirs, truth)
    nearness = pairs.overlaps - np.abs(theirs.scores[pairs.found] - ours.scores[pairs.truth])
    matched, _ = match_boxes(theirs, truth, replace(pairs, overlaps=nearness))
    rows = np.flatnonzero(matched >= 0)
    rows = rows[np.maximum(theirs.scores[rows], ours.scores[matched[rows]]) > MIN_CONF]
    ours_count, theirs_count = ((each.scores > MIN_CONF) & (each.areas >= 1) for each in (ours, theirs))
    pixels = np.abs(theirs.boxes_xyxy[rows] - ours.boxes_xyxy[matched[rows]])
    return {
        "matched": len(rows),
        "torch_alone": len(np.setdiff1d(np.flatnonzero(ours_count), matched)),
        "file_alone": int((theirs_count & (matched < 0)).sum()),
        "pixels": float(pixels.max(initial=0)),
        "score": float(np.abs(theirs.scores[rows] - ours.scores[matched[rows]]).max(initial=0)),
    }


def judge(row: Mapping[str, Any], expected: Mapping[str, Any], job: Job) -> list[str]:
    """What is too far off in the file of this row of parity.json, a line each, and what to do.

    `expected`: torch's figures. Without them float32 is judged by its boxes, and others are not judged.
    """
    if not expected:
        alone = row["torch_alone"] + row["file_alone"]
        far = row["pixels"] > MAX_PIXELS or row["score"] > MAX_SCORE or alone
        line = f"boxes differ from torch's by up to {row['pixels']:.2f} pixels and {row['score']:.4f} of score, and "
        line += f"{alone} have no match; rounding explains {MAX_PIXELS} pixels and {MAX_SCORE}: don't use this file"
        return [line] if far and row["precision"] == "float32" else []
    found, is_int8 = row["figures"], row["precision"] == "int8"
    pairs = [*zip(expected["classes"], found["classes"], strict=True)]
    ours, theirs = max(pairs, key=lambda pair: abs(pair[0]["map50_95"] - pair[1]["map50_95"]))
    what = f"all classes (most apart: {ours['name']}, {ours['map50_95']:.4f} and {theirs['map50_95']:.4f})"
    measured = [(what, expected["map50_95"], found["map50_95"], TOLERANCES[row["precision"]])]
    measured += [
        (f"class {ours['name']} ({ours['boxes']} boxes)", ours["map50_95"], theirs["map50_95"], CLASS_TOLERANCE)
        for ours, theirs in pairs
        if is_int8 and ours["boxes"] >= CLASS_BOXES
    ]
    # all of the head: leaving its class branches alone in float did not help in ONNX Runtime where it was measured
    has_head = "head" in map(str.strip, (job.config.keep_float or "").split(","))
    more = "leave out --int8" if has_head else "--keep-float head leaves more in float"
    advice = more if is_int8 else "leave out --half" if row["precision"] == "float16" else "don't use it"
    return [
        f"mAP50-95 of {what}: {before:.4f} in torch, {after:.4f} here, more than {limit} apart; {advice}"
        for what, before, after, limit in measured
        if (before - after if is_int8 else abs(before - after)) > limit  # int8 may gain
    ]


def _drawing(number: int, fixed: tuple[int, int] | None, imgsz: ImageSize, stride: int, pixels: PixelSpec) -> Batch:
    """An image of the demo, whole or cut to another shape, letterboxed as `predict` does it."""
    image = demo_image(0, "val", number).pixels
    image = _as_wanted(image[: len(image) * (4 - number % 4) // 4], pixels)
    boxed, transform = letterbox(image, fixed or minimal_shape(image.shape[0], image.shape[1], imgsz, stride))
    no_boxes = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    return collate([Sample(boxed, *no_boxes, number, transform)], [1])


def _as_wanted(image: np.ndarray, pixels: PixelSpec) -> np.ndarray:
    """A drawing, uint8 RGB (H, W, 3), in the channels and bits of a network; a channel that is no colour is grey."""
    if not pixels.has_colours:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], pixels.channels, axis=2)
    return image if pixels.bits == 8 else image * np.uint16(257)


def _bytes(path: Path) -> int:
    """Of a file, of all in a folder; the weights of an .xml lie in a .bin."""
    parts = {path, path.with_suffix(".bin")} if path.suffix == ".xml" else {path, *path.rglob("*")}
    return sum(each.stat().st_size for each in parts if each.is_file())
