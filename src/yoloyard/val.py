"""The figures of a weight file on a data set, as training makes them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from yoloyard import environment
from yoloyard.config import EvaluationConfig, with_words
from yoloyard.cores import Threads
from yoloyard.data.data_yaml import read_data_yaml
from yoloyard.data.index import load_index
from yoloyard.data.loader import make_val_loader
from yoloyard.data.problems import summary
from yoloyard.data.selection import class_numbers, names_of, select
from yoloyard.device import choose_device, choose_precision, images_at_once, precision_named, reuse_memory
from yoloyard.errors import UsageError
from yoloyard.evaluation.coco import Metrics, evaluate
from yoloyard.evaluation.predictions import save_json as write_predictions
from yoloyard.evaluation.validate import predict_all
from yoloyard.files import new_run_folder, write_whole_text
from yoloyard.models.weights import load_picture_model

DEFAULT_BATCH = 32
AMP_LINE = (
    "computing in float32; --amp computes in bfloat16, which this device has: 1.5 times as fast where it was measured, "
    "with an mAP that differed by less than 0.001"
)


@dataclass(frozen=True)
class Validation:
    """What `validate` found and where it is written."""

    metrics: Metrics
    folder: Path


def validate(
    weights: str | Path,
    data: str | Path,
    split: str = "val",
    imgsz: int | None = None,
    batch: int | None = None,
    conf: float | None = None,
    iou: float | None = None,
    max_det: int | None = None,
    device: str = "auto",
    amp: bool | None = None,
    workers: int = 0,
    save_json: bool = False,
    project: str | Path = "runs",
    name: str = "val",
    say: Callable[[str], None] = lambda line: None,
) -> Validation:
    """Evaluate `weights` on a split of `data` and write the report. What is None comes from the weight file.

    Raises UsageError or UserError if something is missing or does not fit.
    """
    where = choose_device(device)
    threads = Threads(where.type, say)
    detector, metadata = load_picture_model(Path(weights))
    kept: dict[str, Any] = metadata.get("evaluation", {})
    asked = {"conf": conf, "iou": iou, "max_det": max_det}
    known = {name: value for name, value in kept.items() if name in asked}
    settings = with_words(
        EvaluationConfig(), known | {name: value for name, value in asked.items() if value is not None}
    )
    spec = read_data_yaml(data)
    trained: dict[str, Any] = metadata.get("config", {})
    classes, single_cls = trained.get("classes"), trained.get("single_cls", False)
    names = names_of(spec.names, single_cls)
    if len(names) != detector.num_classes:
        raise UsageError(
            f"{weights} knows {detector.num_classes} classes ({', '.join(metadata['names'][:10])}), "
            f"{spec.path} has {len(names)} ({', '.join(names[:10])})"
        )
    if list(names) != list(metadata["names"]):
        say(f"warning: the classes are called otherwise in {weights}: {', '.join(metadata['names'])}")
    index = select(load_index(spec, split, say), classes, single_cls)
    if classes is not None:
        chosen = ", ".join(spec.names[number] for number in class_numbers(classes, spec.names))
        say(f"as in training, boxes of these classes alone are counted: {chosen}")
    for line in summary(index.problems):
        say(f"{split}: {line}")
    stride = max(detector.strides)
    wanted = imgsz or metadata.get("imgsz", 640)
    size = detector.input_size(wanted)
    if size != wanted:
        say(f"imgsz {wanted} is not a multiple of the stride {stride}: {size} is used")
    reuse_memory(where)
    precision = precision_named(where, kept.get("precision", "float32") if amp is None else "any" if amp else "float32")
    if amp is None and (precision.name, choose_precision(where, amp=True).name) == ("float32", "bfloat16"):
        say(AMP_LINE)
    loader = make_val_loader(
        index,
        size,
        batch or kept.get("batch", DEFAULT_BATCH),
        stride,
        workers=workers,
        say=say,
        at_once=images_at_once(where, size),
    )
    folder = new_run_folder(Path(project), name)
    detector.to(device=where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    threads.choose(wait=True)
    try:
        predictions = predict_all(detector, loader, settings, where, precision)
    finally:
        threads.restore()
    metrics = evaluate(index, predictions, settings.max_det)
    from yoloyard.evaluation.report import write_report  # matplotlib takes half a second to import

    write_report(
        folder / "report.html",
        title=f"{Path(weights).name} on {spec.path.name}, {split}",
        metrics=metrics,
        index=index,
        predictions=predictions,
        facts={
            "Weights": str(weights),
            "Model": metadata["model"],
            "Data": f"{spec.path}, {split}, {len(index):,} images",
            "Image size": f"{size} pixels",
            "NMS": f"score above {settings.conf}, IoU {settings.iou}, at most {settings.max_det} boxes",
            "Device": f"{where}, {precision.name}",
            "Versions": ", ".join(f"{name} {version}" for name, version in environment.versions().items()),
        },
        commands={"Find objects in pictures": f"yoloyard predict --weights {shlex.quote(str(weights))} PICTURES"},
    )
    write_whole_text(folder / "metrics.json", json.dumps(metrics.figures(), indent=1))
    if save_json:
        write_predictions(folder / "predictions.json", index, predictions)
    return Validation(metrics, folder)
