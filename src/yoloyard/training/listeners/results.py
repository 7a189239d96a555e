"""What a run leaves for its user: records (an epoch a line), weight files with their metadata, and the report."""

import csv
import dataclasses
import io
import json
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from yoloyard.common.errors import UserError
from yoloyard.common.files import write_whole_text
from yoloyard.common.log import ONCE
from yoloyard.common.structures import Detections
from yoloyard.common.tiles import image_facts
from yoloyard.common.versions import versions
from yoloyard.config.settings import TrainConfig, flat_settings
from yoloyard.data.index.tiled import tile_spec
from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.models.weights import save_weights
from yoloyard.training.listeners import events
from yoloyard.training.listeners.card import write_card
from yoloyard.training.listeners.events import Event, Record, Result
from yoloyard.training.setup.setup import Setup

log = logging.getLogger(__name__)


class Records:
    """A listener that keeps the figures of each epoch and the alerts in the run folder."""

    def __init__(self) -> None:
        self._setup: Setup | None = None  # until the run starts
        self._lines: list[dict[str, Any]] = []  # records, and alerts, which have an `alert`, in their order
        self._epoch = self._step = 0

    def __call__(self, event: Event) -> None:
        """Take up what an earlier part of the run left; write each epoch's figures and each alert."""
        match event:
            case events.RunStarted():
                self._setup, self._epoch = event.setup, event.epoch + 1
                former = [line for line in _lines(event.folder) if "alert" in line or line["epoch"] <= event.epoch]
                self._lines = former + self._lines
            case events.EpochStarted():
                self._epoch = event.epoch
            case events.StepFinished():
                self._step = event.number + 1
            case events.AlertRaised():
                line = {"epoch": self._epoch, "step": self._step, "alert": event.kind, "message": event.message}
                self._lines.append(line | {"evidence": event.evidence, "remedy": event.remedy})
                self._write()
            case events.EpochMeasured(record=record):
                # After a rollback an epoch comes again.
                self._lines = [line for line in self._lines if "alert" in line or line["epoch"] < record["epoch"]]
                self._lines.append(record)
                self._write()

    def _write(self) -> None:
        if (setup := self._setup) is None:
            return
        records = [line for line in self._lines if "alert" not in line]
        table = io.StringIO()
        writer = csv.DictWriter(table, list(dict.fromkeys(name for record in records for name in record)))
        writer.writeheader()
        writer.writerows(records)
        try:
            setup.require_folder()
            write_whole_text(setup.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self._lines))
            if records:
                write_whole_text(setup.folder / "results.csv", table.getvalue())
        except UserError as error:  # all of them are written again after the next epoch
            log.warning(f"the latest figures and alerts are not in the run folder yet: {error}", extra=ONCE)


def read_records(folder: Path) -> list[Record]:
    """The records in the run folder's metrics.jsonl; none without such a file. Raises UserError if it is damaged."""
    return [line for line in _lines(folder) if "alert" not in line]


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}); repair or remove it, then resume") from error


def as_record(epoch: int, groups: Mapping[str, Mapping[str, float]]) -> Record:
    """`{"train": {"box": 1.0}}` as `{"epoch": 1, "train/box": 1.0}`."""
    return {"epoch": epoch} | {
        f"{group}/{name}": float(value) for group, values in groups.items() for name, value in values.items()
    }


def validation_batch(config: TrainConfig) -> int:
    """Images of a validation batch of one process, which needs no memory for gradients."""
    return 2 * config.batch // config.processes


def save_run_weights(
    path: Path, setup: Setup, state: Mapping[str, Tensor], epoch: int, metrics: Metrics | None
) -> None:
    """Write a weight file for prediction, evaluation and further training; `epoch` is from 1. Raises UserError.

    Beside the best one comes its card.
    """
    config, spec = setup.config, setup.spec
    used = {"batch": validation_batch(config), "precision": spec.precision}
    metadata: dict[str, Any] = {
        "model": spec.model_name,
        "model_arguments": spec.model_arguments,
        "names": list(spec.names),
        "pixels": setup.train_index.pixels.as_dict(),
        "imgsz": config.imgsz,
        "evaluation": dataclasses.asdict(config.evaluation) | used,
        "showing": dataclasses.asdict(metrics.showing) if metrics else {},
        "config": flat_settings(config),
        "licence": spec.licence,
        "versions": versions(),
        "epoch": epoch,
        "metrics": metrics.figures() if metrics else {},
    }
    if tiles := tile_spec(config):
        metadata["tile"] = tiles.as_dict()
    if spec.model_digest is not None:
        metadata["model_digest"] = spec.model_digest
    if spec.history is not None:
        metadata["history"] = spec.history
    save_weights(path, state, metadata)
    if path.stem == "best" and metrics is not None:
        write_card(path.with_suffix(".md"), setup, epoch, metrics)


def write_run_report(result: Result, setup: Setup, predictions: Mapping[int, Detections], seconds: float) -> None:
    """The report of a run: figures of its best weights."""
    config, records = setup.config, read_records(setup.folder)
    best, data, folder = (shlex.quote(str(each)) for each in (result.weights, config.data, setup.folder))
    facts = {
        "Model": f"{setup.spec.model_name}, {sum(p.numel() for p in setup.detector.parameters()):,} parameters",
        "Data": config.data,
        "Images": f"{len(setup.train_index):,} for training, {len(setup.val_index):,} for validation",
        "Epochs": f"{len(records)} of {config.epochs}, the best one {result.best_epoch}",
        **image_facts(config.imgsz, setup.train_index.pixels, tile_spec(config)),
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
        "Train further": f"yoloyard train --resume {folder} --epochs {2 * config.epochs}",
        "Start another run from these weights": f"yoloyard train --weights {best} --data OTHER.yaml",
    }
    from yoloyard.evaluation.report.report import write_report  # matplotlib takes half a second to import

    write_report(
        result.report,
        title=setup.folder.name,
        metrics=result.metrics,
        other=result.other,
        index=setup.val_index,
        predictions=predictions,
        facts=facts,
        commands=commands,
        records=records,
        train_index=setup.train_index,
    )
