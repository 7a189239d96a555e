"""What a run leaves in its folder while it goes on: its state, and what the last validation found."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from yoloyard.common.pixel_spec import EIGHT_BITS
from yoloyard.common.structures import Detections
from yoloyard.config.settings import TrainConfig
from yoloyard.evaluation.metrics.coco import ClassMetrics
from yoloyard.evaluation.metrics.showing import Showing
from yoloyard.training.listeners import last_validation, status
from yoloyard.training.listeners.events import (
    EpochEnded,
    EpochStarted,
    Listeners,
    Record,
    Result,
    RunFinished,
    RunStarted,
    StepFinished,
    Validation,
)
from yoloyard.training.listeners.last_validation import LastValidation
from yoloyard.training.listeners.status import Status

ROW = ClassMetrics("dent", 1, 1, 0.5, 0.5, 0.5, 0.75, 0.25)


def figures() -> Record:
    raise AssertionError("a listener waited for the device")


def step(epoch: int, batch: int) -> StepFinished:
    return StepFinished(epoch, batch, 0, torch.zeros(3, device="meta"), lambda: None, figures)


def started(folder: Path, epoch: int = 0, seconds: float = 0.0) -> RunStarted:
    setup: Any = SimpleNamespace(
        config=TrainConfig(epochs=7),
        folder=folder,
        spec=SimpleNamespace(names=["dent"]),
        val_index=SimpleNamespace(paths=[folder / "no.jpg"], pixels=EIGHT_BITS),
    )
    return RunStarted(folder, epoch, setup, seconds)


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_the_status_says_where_a_run_is_and_is_written_every_few_seconds_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(status, "time", SimpleNamespace(monotonic=lambda: now))
    listeners = Listeners([Status()])
    listeners.tell(started(tmp_path, epoch=2, seconds=600.0))
    first = read(tmp_path / "status.json")
    assert (first["state"], first["epoch"], first["epochs"], first["seconds"]) == ("running", 3, 7, 600.0)
    now += 4
    listeners.tell(EpochStarted(3, 9, 50))
    listeners.tell(step(3, 1))
    assert read(tmp_path / "status.json") == first
    now += 2
    listeners.tell(step(3, 2))
    later = read(tmp_path / "status.json")
    assert [later[name] for name in ("epoch", "epochs", "step", "steps", "seconds")] == [3, 9, 2, 50, 606.0]
    listeners.tell(RunFinished(None, 3, 1.0, ZeroDivisionError("no")))
    assert read(tmp_path / "status.json")["state"] == "failed"  # at once
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_run_folder_that_is_gone_for_a_while_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(status, "SECONDS_BETWEEN_WRITES", -1)
    folder = tmp_path / "run"
    listeners = Listeners([Status()])
    for batch in range(3):
        listeners.tell(started(folder) if batch == 0 else step(1, batch))
    assert said == [f"warning: cannot write {folder / 'status.json'}: No such file or directory; it is tried again"]
    folder.mkdir()
    listeners.tell(step(1, 3))
    assert read(folder / "status.json")["step"] == 3


def test_a_run_that_ends_before_it_begins_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Listeners([Status(), LastValidation()]).tell(RunFinished(None, 0, 0.0, ZeroDivisionError("no")))
    assert not list(tmp_path.iterdir())


def test_the_last_validation_is_kept_with_images_drawn_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2.imwrite(str(tmp_path / "no.jpg"), np.full((600, 960, 3), 90, np.uint8))
    found = Detections(torch.tensor([[100.0, 100, 400, 400]]), torch.tensor([0.9]), torch.tensor([0]))
    metrics: Any = SimpleNamespace(classes=[ROW], showing=Showing(0.25, 0.5))
    listeners, path = Listeners([LastValidation()]), tmp_path / "last_validation.json"
    path.write_text("of a former run")
    listeners.tell(started(tmp_path))
    assert not path.exists()
    listeners.tell(EpochEnded(1, {}, lambda: None))
    assert not path.exists()
    for epoch in (2, 3):
        listeners.tell(EpochEnded(epoch, {}, lambda: Validation(metrics, {0: found})))
    kept = read(path)
    assert (kept["epoch"], kept["images_epoch"]) == (3, 2)
    assert kept["classes"] == [dataclasses.asdict(ROW)]
    (image,) = kept["images"]
    assert (image["alt"], image["width"], image["height"]) == ("no.jpg: found", 480, 300)
    monkeypatch.setattr(last_validation, "SECONDS_BETWEEN_IMAGES", -1)
    listeners.tell(EpochEnded(4, {}, lambda: Validation(metrics, {0: found})))
    assert read(path)["images_epoch"] == 4
    listeners.tell(RunFinished(Result(tmp_path, path, path, metrics, 2), 4, 1.0))
    assert (read(path)["epoch"], read(path)["images_epoch"]) == (2, 4)
