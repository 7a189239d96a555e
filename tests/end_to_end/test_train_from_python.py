"""`yoloyard.train` from Python: who hears of a run, and what stands beside its results."""

import json
from pathlib import Path
from typing import Any

import pytest

import yoloyard
from commands import TINY_NETWORK
from yoloyard.common.errors import UsageError

SETTINGS: dict[str, Any] = {
    "model": TINY_NETWORK, "imgsz": 64, "batch": 4, "epochs": 1, "amp": False, "tensorboard": False, "device": "cpu",
}  # fmt: skip


def test_several_functions_hear_of_a_run(data: Path) -> None:
    one: list[Any] = []
    other: list[Any] = []
    result = yoloyard.train(data=data, on_event=[one.append, other.append], **SETTINGS)
    names = [type(event).__name__ for event in one]
    assert names[0] == "RunStarted"
    assert names.count("EpochEnded") == 1
    assert "CheckpointWritten" in names
    assert len(one) == len(other)
    assert all(first is second for first, second in zip(one, other, strict=True))
    environment = json.loads((result.folder / "environment.json").read_text())
    state = json.loads((result.folder / "checkpoints" / "last" / "state.json").read_text())
    assert environment["precision"] == state.get("spec", state)["precision"] == "float32"
    assert environment["data"]["train"]["images"] == 14


def test_each_of_them_must_be_a_function(data: Path) -> None:
    with pytest.raises(UsageError, match="on_event must be a function of an event, not 'epochs'"):
        yoloyard.train(data=data, on_event=[print, "epochs"])  # type: ignore[list-item]
    assert not Path("runs").exists()
