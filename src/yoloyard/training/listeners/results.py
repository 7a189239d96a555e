"""What a run leaves behind for its user: weight files with their metadata, and the report."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yoloyard.common.structures import Detections
from yoloyard.common.versions import versions
from yoloyard.config.settings import TrainConfig, flat_settings
from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.models.detector import Detector
from yoloyard.models.weights import save_weights
from yoloyard.training.listeners.records import read_records
from yoloyard.training.setup.setup import Setup


def validation_batch(config: TrainConfig) -> int:
    """Images of a validation batch of one process, which needs no memory for gradients."""
    return 2 * config.batch // config.processes


def save_run_weights(path: Path, setup: Setup, detector: Detector, epoch: int, metrics: Metrics | None) -> None:
    """Write a weight file with all that is needed to predict with it, evaluate it alike, or train on.

    `epoch` counts from 1; without `metrics` it was not validated. Raises UserError if the file can't be written; an
    older one is then untouched.
    """
    evaluation = setup.config.evaluation
    metadata: dict[str, Any] = {
        "model": setup.spec.model_name,
        "model_arguments": setup.spec.model_arguments,
        "names": list(setup.spec.names),
        "channels": 3,
        "imgsz": setup.config.imgsz,
        "evaluation": {
            "conf": evaluation.conf,
            "iou": evaluation.iou,
            "max_det": evaluation.max_det,
            "batch": validation_batch(setup.config),
            "precision": setup.precision.name,
        },
        "showing": dataclasses.asdict(metrics.showing) if metrics else {},
        "config": flat_settings(setup.config),
        "licence": setup.spec.licence,
        "versions": versions(),
        "epoch": epoch,
        "metrics": metrics.figures() if metrics else {},
    }
    if setup.spec.model_digest is not None:
        metadata["model_digest"] = setup.spec.model_digest
    save_weights(path, detector.state_dict(), metadata)


def write_run_report(
    path: Path,
    setup: Setup,
    metrics: Metrics,
    predictions: Mapping[int, Detections],
    best_epoch: int,
    seconds: float,
) -> None:
    """The report of a run: figures of its best weights. `best_epoch` counts from 1."""
    config, records = setup.config, read_records(setup.folder)
    best = shlex.quote(str(setup.folder / "weights" / "best.safetensors"))
    data = shlex.quote(config.data)
    facts = {
        "Model": f"{setup.spec.model_name}, {sum(p.numel() for p in setup.detector.parameters()):,} parameters",
        "Data": config.data,
        "Images": f"{len(setup.train_index):,} for training, {len(setup.val_index):,} for validation",
        "Epochs": f"{len(records)} of {config.epochs}, the best one {best_epoch}",
        "Image size": f"{config.imgsz} pixels",
        "Batch": f"{config.batch} images",
        "Optimizer": f"{config.optimization.optimizer}, lr0 {config.optimization.lr0:g}",
        "Device": f"{setup.device}, {setup.precision.name}",
        "Time": f"{seconds / 60:.1f} minutes",
        "Seed": config.seed,
        "Versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    if setup.spec.licence:
        facts["Licence of the weights it started from"] = setup.spec.licence
    commands = {
        "Find objects in images": f"yoloyard predict --weights {best} IMAGES",
        "These figures again": f"yoloyard val --weights {best} --data {data}",
        "Train further": f"yoloyard train --resume {shlex.quote(str(setup.folder))} --epochs {2 * config.epochs}",
        "Start another run from these weights": f"yoloyard train --weights {best} --data OTHER.yaml",
    }
    from yoloyard.evaluation.report.report import write_report  # matplotlib takes half a second to import

    write_report(
        path,
        title=setup.folder.name,
        metrics=metrics,
        index=setup.val_index,
        predictions=predictions,
        facts=facts,
        commands=commands,
        records=records,
        train_index=setup.train_index,
    )
