"""What decides a run is kept in a checkpoint and read again, also from one of format 2."""

import json
from pathlib import Path
from typing import Any

import pytest

from yoloyard.common.errors import UsageError
from yoloyard.common.lineage import longer_history
from yoloyard.config.settings import TrainConfig, flat_settings
from yoloyard.training.setup.settings import resumed
from yoloyard.training.spec import RunSpec

FORMAT_2 = Path(__file__).parents[1] / "data" / "state_format_2.json"


@pytest.fixture
def saved() -> dict[str, Any]:
    """The state.json of a checkpoint of format 2."""
    return dict(json.loads(FORMAT_2.read_text(encoding="utf-8")))


def test_format_2_is_read_key_by_key(saved: dict[str, Any]) -> None:
    spec = RunSpec.from_json(saved)
    assert saved["config"].items() <= flat_settings(spec.config).items()
    assert spec.config.augment.close_mosaic == 0
    assert spec.given["classes"] == "scratch,dent"
    assert spec.names == ("scratch", "dent", "stain", "missing_screw", "crack")
    assert spec.images.startswith("d22a0818")
    assert spec.model_name == "tiny_network.py:Tiny"
    assert spec.model_arguments == {"num_classes": 5}
    assert spec.model_digest == saved["model_digest"] != ""
    assert spec.transform == saved["transform"]
    assert spec.licence is None
    assert spec.precision == ""
    newer = {name: value for name, value in flat_settings(spec.config).items() if name not in saved["config"]}
    assert newer.items() <= flat_settings(TrainConfig()).items()
    assert "check_duplicates" in newer


def test_what_is_written_is_read_again(saved: dict[str, Any]) -> None:
    assert RunSpec.from_json(saved).history is None
    saved |= {"licence": "AGPL-3.0", "precision": "bfloat16", "history": longer_history({}, "trained", None, None)}
    spec = RunSpec.from_json(saved)
    text = json.dumps({"format": 3, "progress": {}, **spec.to_json()})
    assert RunSpec.from_json(json.loads(text)) == spec
    assert (spec.licence, spec.precision) == ("AGPL-3.0", "bfloat16")
    assert spec.history == saved["history"]


def test_the_size_that_a_user_gave_may_be_said_again(saved: dict[str, Any]) -> None:
    saved["config"] |= {"imgsz": [64, 160]}
    saved["given"] |= {"imgsz": [60, 150]}
    spec = RunSpec.from_json(saved)
    for size in ((60, 150), (64, 160)):
        assert resumed(spec, {"imgsz": size}, 1, Path("runs/one"), 3).config.imgsz == (64, 160)
    with pytest.raises(UsageError, match="can't change imgsz"):
        resumed(spec, {"imgsz": (60, 160)}, 1, Path("runs/one"), 3)


def test_a_model_of_the_registry_has_its_own_name(saved: dict[str, Any]) -> None:
    saved |= {"config": saved["config"] | {"model": "yolo11n"}, "model_digest": None}
    assert RunSpec.from_json(saved).model_name == "yolo11n"


def test_a_setting_that_is_unknown_here_is_named(saved: dict[str, Any]) -> None:
    saved["config"]["epoch_count"] = 3
    with pytest.raises(UsageError, match="unknown setting 'epoch_count'"):
        RunSpec.from_json(saved)


def test_a_resumed_run_takes_the_few_overrides_that_may_change_it(saved: dict[str, Any]) -> None:
    spec = RunSpec.from_json(saved)
    again = {"classes": "scratch,dent", "data": "/srv/factory/line/data.yaml", "optimizer": "AdamW", "project": "moved"}
    more = resumed(spec, again | {"epochs": 5, "device": "cpu,cpu"}, 2, Path("runs/one"), 3)
    assert (more.config.epochs, more.config.device, more.config.processes) == (5, "cpu,cpu", 2)
    assert flat_settings(more.config).items() - flat_settings(spec.config).items() == {
        ("epochs", 5),
        ("device", "cpu,cpu"),
        ("processes", 2),
    }
    assert more.given == spec.given | again | {"epochs": 5, "device": "cpu,cpu"}
    for overrides, count, message in (
        ({"lr0": 0.5, "imgsz": 96}, 1, "a resumed run can't change imgsz, lr0 "),
        ({"epochs": 2}, 1, "has had 3 epochs; --epochs 2 would be fewer"),
        ({}, 3, "the batch of 4 can't be shared evenly by 3 processes"),
    ):
        with pytest.raises(UsageError, match=message):
            resumed(spec, overrides, count, Path("runs/one"), 3)
