"""Several processes train as one does: the same samples, weights and figures."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from processes import run_together
from yoloyard.config import to_words
from yoloyard.data.demo import write_demo
from yoloyard.data.loader import make_val_loader
from yoloyard.evaluation.validate import predict_all
from yoloyard.structures import Detections
from yoloyard.training import trainer
from yoloyard.training.interrupt import InterruptRequest
from yoloyard.training.monitor import Monitor
from yoloyard.training.parallel import join_team, leave_team
from yoloyard.training.results import validation_batch
from yoloyard.training.setup import Setup, prepare, rebuild

STEPS = 20
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training pictures, half of them without an object, and 5 for validation: no even shares for 2 or 4."""
    data = write_demo(tmp_path_factory.mktemp("processes") / "line", seed=3, train=16, val=5, size=96)
    for labels in sorted((data.parent / "labels" / "train").iterdir())[::2]:
        labels.write_text("")
    return data


def as_arrays(predictions: dict[int, Detections]) -> dict[int, np.ndarray]:
    """Boxes, scores and labels of each picture side by side."""
    return {
        image: np.column_stack((found.boxes.numpy(), found.scores.numpy(), found.labels.numpy()))
        for image, found in predictions.items()
    }


def train_and_validate(data: str, model: str, cache: str) -> dict[str, Any]:
    """Twenty steps with frozen normalisation, then a validation; what this process has then."""
    os.environ["YOLOYARD_CACHE"] = cache
    words: dict[str, Any] = {
        "data": data, "model": model, "imgsz": 64, "batch": 4, "epochs": 5, "amp": False, "device": "cpu",
        "optimizer": "SGD", "tensorboard": False, "project": f"{cache}/runs", "autoanchor": False,
    }  # fmt: skip
    team = join_team(CPU)
    setup: Setup | None = None
    with team.first() as is_first:
        if is_first:
            setup = prepare(words, CPU, team.size, lambda line: None)
    shared = team.share((setup.folder, setup.facts(), setup.config) if setup else None)
    setup = setup or rebuild(*shared, CPU)
    for module in setup.detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    with InterruptRequest() as interrupt:
        run = trainer.begin(setup, Monitor(silent=True), team, interrupt)
        samples = []
        for epoch in range(5):
            samples += [batch.images.numpy() for batch in run.train_loader.epoch(epoch)]
            trainer.train_epoch(run)
            run.state.progress.epoch, run.state.progress.position = epoch + 1, 0
        metrics, predictions = trainer.validate(run, run.state.update.ema.model)
        whole = make_val_loader(setup.val_index, 64, validation_batch(setup.config))
        predictions_of_one = predict_all(
            run.state.update.ema.model, whole, setup.config.evaluation, CPU, setup.precision
        )
    leave_team()
    return {
        "samples": samples,
        "losses": trainer.mean_losses(run),
        "weights": {name: value.numpy() for name, value in setup.detector.state_dict().items()},
        "predictions": as_arrays(predictions),
        "predictions of one": as_arrays(predictions_of_one),
        "figures": metrics.figures(),
        "config": to_words(setup.config),
    }


@pytest.mark.parametrize("model", ["yolo11n", "yolov5n"])
def test_two_and_four_processes_train_as_one(line: Path, tmp_path: Path, model: str) -> None:
    alone, *_ = run_together(1, train_and_validate, str(line), model, str(tmp_path / "1"))
    for count in (2, 4):
        results = run_together(count, train_and_validate, str(line), model, str(tmp_path / str(count)))
        for step in range(STEPS):
            together = np.concatenate([result["samples"][step] for result in results])
            assert np.array_equal(together, alone["samples"][step])
        for name, value in alone["weights"].items():
            for result in results:
                # float32: sums in another order, over 20 steps
                np.testing.assert_allclose(result["weights"][name], value, rtol=1e-4, atol=1e-6, err_msg=name)
        assert results[0]["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert sum(map(len, results[0]["predictions"].values())) > 20
        assert results[0]["predictions"].keys() == results[0]["predictions of one"].keys() == set(range(5))
        for image, boxes in results[0]["predictions"].items():
            assert np.array_equal(boxes, results[0]["predictions of one"][image])
        assert all(result["figures"] == results[0]["figures"] for result in results)
        assert results[0]["config"]["processes"] == count
