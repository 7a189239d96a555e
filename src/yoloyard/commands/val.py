"""The figures of a weight file on a data set, as training makes them."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from yoloyard.common.cores import Threads
from yoloyard.common.device import (
    choose_device,
    choose_precision,
    images_at_once,
    precision_named,
    precision_text,
)
from yoloyard.common.errors import UsageError
from yoloyard.common.files import new_run_folder, write_whole_text
from yoloyard.common.versions import versions
from yoloyard.config.settings import KINDS, EvaluationConfig, TrainConfig, checked_overrides, with_overrides
from yoloyard.cpu.memory import reuse_memory
from yoloyard.data.audit.problems import summary
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.formats.labels import composed
from yoloyard.data.index.index import load_index
from yoloyard.data.index.selection import class_numbers, names_of, select
from yoloyard.data.loading.descriptors import check_limit
from yoloyard.data.loading.loader import make_val_loader
from yoloyard.evaluation.metrics.coco import Metrics, evaluate
from yoloyard.evaluation.metrics.showing import Showing
from yoloyard.evaluation.predictions import save_json as write_predictions
from yoloyard.evaluation.validate import predict_all
from yoloyard.models.weights import load_image_model

log = logging.getLogger(__name__)

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
    device: str | int | torch.device | None = "auto",
    amp: bool | None = None,
    workers: int = 0,
    save_json: bool = False,
    project: str | Path = "runs",
    name: str = "val",
) -> Validation:
    """Evaluate `weights` on a split of `data` and write the report. What is None comes from the weight file.

    Raises UsageError or UserError if something is missing or does not fit.
    """
    check_limit()
    for what, value, kind in (("split", split, str), ("save_json", save_json, bool)):
        if not isinstance(value, kind):
            raise UsageError(f"{what} must be {KINDS[kind]}, not {value!r:.80}")
    given: dict[str, Any] = {
        "weights": weights,
        "data": data,
        "device": device,
        "project": project,
        "name": name,
        "workers": workers,
    }
    given |= {what: said for what, said in (("imgsz", imgsz), ("batch", batch), ("amp", amp)) if said is not None}
    words = checked_overrides(TrainConfig, given)
    if not words.get("weights") or not words["data"]:
        raise UsageError("say which weights file and which data.yaml to validate")
    weights, data = words["weights"], words["data"]
    imgsz, batch, amp = (words.get(what) for what in ("imgsz", "batch", "amp"))
    where = choose_device(words.get("device", "auto"))
    threads = Threads(where.type)
    detector, metadata = load_image_model(Path(weights))
    kept: dict[str, Any] = metadata.get("evaluation", {})
    asked = {"conf": conf, "iou": iou, "max_det": max_det}
    known = {name: value for name, value in kept.items() if name in asked}
    settings = with_overrides(
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
    order = class_order(metadata["names"], names, f"{weights} and {spec.path}")
    if order != list(range(len(names))):
        log.info(f"the classes of {spec.path} are in another order than those of {weights}: they are matched by name")
        if classes is not None:
            classes = ",".join(str(order[number]) for number in class_numbers(classes, metadata["names"]))
    elif list(names) != list(metadata["names"]):
        log.warning(f"the classes are called otherwise in {weights}: {', '.join(metadata['names'])}")
    index = select(load_index(spec, split), classes, single_cls)
    if classes is not None:
        chosen = ", ".join(spec.names[number] for number in class_numbers(classes, spec.names))
        log.info(f"as in training, boxes of these classes alone are counted: {chosen}")
    for line in summary(index.problems):
        log.info(f"{split}: {line}")
    stride = max(detector.strides)
    wanted = imgsz or metadata.get("imgsz", 640)
    size = detector.input_size(wanted)
    if size != wanted:
        log.info(f"imgsz {wanted} is not a multiple of the stride {stride}: {size} is used")
    reuse_memory(where)
    precision = precision_named(where, kept.get("precision", "float32") if amp is None else "any" if amp else "float32")
    if amp is None and (precision.name, choose_precision(where, amp=True).name) == ("float32", "bfloat16"):
        log.info(AMP_LINE)
    loader = make_val_loader(
        index,
        size,
        batch or kept.get("batch", DEFAULT_BATCH),
        stride,
        workers=words["workers"],
        at_once=images_at_once(where, size),
    )
    folder = new_run_folder(Path(words["project"]), words["name"] or "val")
    detector.to(device=where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    threads.choose(wait=True)
    try:
        found_by_place = predict_all(detector, loader, settings, where, precision)
    finally:
        threads.restore()
    numbers = torch.tensor(order)
    predictions = {image_id: replace(found, labels=numbers[found.labels]) for image_id, found in found_by_place.items()}
    metrics = evaluate(index, predictions, settings.max_det, Showing.of(metadata).within(settings))
    from yoloyard.evaluation.report.report import write_report  # matplotlib takes half a second to import

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
            "Device": f"{where}, {precision_text(precision, where)}",
            "Versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        },
        commands={"Find objects in images": f"yoloyard predict --weights {shlex.quote(str(weights))} IMAGES"},
    )
    write_whole_text(folder / "metrics.json", json.dumps(metrics.figures(), indent=1))
    if save_json:
        write_predictions(folder / "predictions.json", index, predictions)
    return Validation(metrics, folder)


def class_order(trained: Sequence[str], names: Sequence[str], files: str) -> list[int]:
    """For each class of the weights file, its number in the data: by name where both have the same names, else equal.

    Case and spaces at the ends don't matter. Raises UsageError, naming `files`, where some names have moved and others
    are not the same: no order would be right for sure.
    """
    plain_trained, plain = ([composed(name.strip().lower()) for name in each] for each in (trained, names))
    if sorted(plain_trained) == sorted(plain) and len(set(plain)) == len(plain):
        return [plain.index(name) for name in plain_trained]
    for number, name in enumerate(plain_trained):
        if name in plain and plain[number] != name:
            raise UsageError(
                f"{files} give the class {trained[number]!r} the numbers {number} and {plain.index(name)}, and not all "
                f"their classes are the same: {', '.join(trained)} and {', '.join(names)}; use the same names in both"
            )
    return list(range(len(names)))
