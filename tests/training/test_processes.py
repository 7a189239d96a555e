"""Several processes train as one does: the same samples, weights and figures."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from processes import gradients_of, join_team, run_together
from yoloyard.common.structures import Detections, images_to_float
from yoloyard.config.settings import flat_settings
from yoloyard.data.index.index import Index
from yoloyard.data.loading.loader import make_val_loader
from yoloyard.demo.write import write_demo
from yoloyard.evaluation.validate import predict_all
from yoloyard.runtimes.network import Network
from yoloyard.training.begin import begin
from yoloyard.training.interrupt import InterruptRequest
from yoloyard.training.listeners.events import Listeners
from yoloyard.training.listeners.results import validation_batch
from yoloyard.training.saving import save_for_good
from yoloyard.training.setup.setup import Setup, build, new_run
from yoloyard.training.state.checkpoint import read_header, restore
from yoloyard.training.trainer import train_epoch
from yoloyard.training.validation import validate

EPOCHS = 6
STEPS = 4 * EPOCHS
CPU = torch.device("cpu")


class Tolerance(NamedTuple):
    """Of weights and averages: as a part of the longest way that a number of the tensor has gone; else relative."""

    way: float
    gradients: float
    losses: float


# Sums in another order, and in bfloat16 a convolution's gradients that each process rounds by itself.
TOLERANCES = {"float32": Tolerance(1e-3, 1e-4, 1e-5), "bfloat16": Tolerance(0.05, 0.15, 1e-3)}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 training images, half of them without an object, and 5 for validation: no even shares for 2 or 4.

    The last batch of an epoch takes two images from its start.
    """
    data = write_demo(tmp_path_factory.mktemp("processes") / "line", seed=3, train=14, val=5, size=96)
    for labels in sorted((data.parent / "labels" / "train").iterdir())[::2]:
        labels.write_text("")
    return data


def as_arrays(predictions: Mapping[int, Detections]) -> dict[int, np.ndarray]:
    """Boxes, scores and labels of each image side by side."""
    return {
        image: np.column_stack((found.boxes.numpy(), found.scores.numpy(), found.labels.numpy()))
        for image, found in predictions.items()
    }


def freeze_normalisation(detector: nn.Module, index: Index) -> None:
    """Keep BatchNorm at the statistics of some images, so that signals and gradients stay of a natural size."""
    normalisations = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in normalisations:
        module.momentum = 1.0
    with torch.no_grad():
        detector.train()(images_to_float(next(iter(make_val_loader(index, 64, 5))).images))
    for module in normalisations:
        assert module.running_var is not None
        module.running_var += module.running_var.mean()  # a channel that hardly varies would blow up what follows
        module.requires_grad_(False)
    for name, parameter in detector.named_parameters():
        if "class_branches" in name and name.endswith("2.bias"):
            nn.init.constant_(parameter, -1.0)  # scores that make the targets of boxes matter


def train_and_validate(data: str, model: str, precision: str, cache: str) -> dict[str, Any]:
    """Six epochs of four batches, three an update, with frozen normalisation, then a validation; what there is then.

    The first two blocks are frozen. In the middle of an update, before the last epoch, all is saved and restored.
    """
    os.environ["YOLOYARD_CACHE"] = cache
    words: dict[str, Any] = {
        "data": data, "model": model, "imgsz": 64, "batch": 4, "nbs": 12, "epochs": EPOCHS, "freeze": "2",
        "device": "cpu", "optimizer": "SGD", "lr0": 0.02, "warmup_bias_lr": 0.0, "autoanchor": False,
        "tensorboard": False, "project": f"{cache}/runs",
    }  # fmt: skip
    team = join_team(CPU)
    setup: Setup | None = None
    with team.on_rank_0() as is_rank_0:
        if is_rank_0:
            setup = new_run(words, CPU, precision, team.size)
            setup.keep()
    shared = team.broadcast((setup.spec, setup.folder) if setup else None)
    setup = setup or build(*shared, CPU)
    freeze_normalisation(setup.detector, setup.val_index)
    before = {name: value.numpy().copy() for name, value in setup.detector.state_dict().items()}
    with InterruptRequest() as interrupt:
        run = begin(setup, Listeners(), team, interrupt)
        samples = []
        for epoch in range(EPOCHS):
            samples += [batch.images.numpy() for batch in run.train_loader.epoch(epoch)]
            if epoch == EPOCHS - 1:
                own_gradients = gradients_of(setup.detector)
                save_for_good(run)
                gradients = gradients_of(setup.detector)
                restore(read_header(run.setup.last_checkpoint), run.engine, run.progress)
            train_epoch(run)
            run.progress.epoch, run.progress.position = epoch + 1, 0
        validation = validate(run, run.engine.average.model)
        whole = make_val_loader(setup.val_index, 64, validation_batch(setup.config))
        network = Network(run.engine.average.model, CPU, setup.precision)
        predictions_of_one = predict_all(network, whole, setup.config.evaluation)
    team.leave()
    return {
        "samples": samples,
        "losses": run.engine.means()[0],
        "own gradients": own_gradients,
        "gradients": gradients,
        "weights before": before,
        "weights": {name: value.numpy() for name, value in setup.detector.state_dict().items()},
        "averages": {name: value.numpy() for name, value in run.engine.average.values.items()},
        "predictions": as_arrays(validation.detections),
        "predictions of one": as_arrays(predictions_of_one),
        "figures": validation.metrics.figures(),
        "config": flat_settings(setup.config),
    }


@pytest.mark.parametrize(
    ("model", "counts", "precision"),
    [
        pytest.param("yolo11n", (2,), "float32", marks=pytest.mark.slow),
        pytest.param("yolo11n", (4,), "float32", marks=pytest.mark.slow),
        pytest.param("yolo11n", (4,), "bfloat16", marks=pytest.mark.slow),
        pytest.param("yolov5n", (2,), "float32", marks=pytest.mark.slow),
    ],
)
def test_two_and_four_processes_train_as_one(
    line: Path, tmp_path: Path, model: str, counts: tuple[int, ...], precision: str
) -> None:
    tolerance = TOLERANCES[precision]
    alone, *_ = run_together(1, train_and_validate, str(line), model, precision, str(tmp_path / "1"))
    way = {name: np.abs(value - alone["weights before"][name]).max() for name, value in alone["weights"].items()}
    convolutions = [name for name, value in alone["weights"].items() if value.ndim == 4]
    assert np.median([way[name] for name in convolutions]) > 1e-5  # they learn something
    largest = max(np.abs(value).max() for value in alone["gradients"].values())
    for count in counts:
        results = run_together(count, train_and_validate, str(line), model, precision, str(tmp_path / str(count)))
        for step in range(STEPS):
            together = np.concatenate([result["samples"][step] for result in results])
            assert np.array_equal(together, alone["samples"][step])
        for result in results:
            for name in alone["weights"]:
                for part in ("weights", "averages"):
                    difference = np.abs(result[part][name] - alone[part][name]).max()
                    assert difference <= tolerance.way * way[name] + 3e-7, (part, name)
        for name, value in alone["gradients"].items():
            if value.any():  # at a level without objects there is none
                first, *others = [result["own gradients"][name] for result in results]
                # exchanged for an update alone, and for a checkpoint
                is_equal = all(np.array_equal(first, other) for other in others)
                assert not is_equal or (precision == "bfloat16" and value.ndim == 1), name  # few values
            for result in results:
                difference = np.abs(result["gradients"][name] - value).max()
                assert difference <= tolerance.gradients * np.abs(value).max() + 1e-6 * largest, name
        assert results[0]["losses"] == pytest.approx(alone["losses"], rel=tolerance.losses)
        assert sum(map(len, results[0]["predictions"].values())) > 20
        assert results[0]["predictions"].keys() == results[0]["predictions of one"].keys() == set(range(5))
        for image, boxes in results[0]["predictions"].items():
            assert np.array_equal(boxes, results[0]["predictions of one"][image])
        assert all(result["figures"] == results[0]["figures"] for result in results)
        assert results[0]["config"]["processes"] == count
