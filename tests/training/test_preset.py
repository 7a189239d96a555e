"""`--preset inspection`: below what the user gave, above the family's recipe, and kept with the run."""

from pathlib import Path

import pytest
import torch
import yaml

from commands import TINY_NETWORK
from yoloyard.common.errors import UsageError
from yoloyard.config.overrides import checked_overrides
from yoloyard.config.recipes import PRESETS, published
from yoloyard.config.settings import TrainConfig, flat_settings
from yoloyard.demo.write import write_demo
from yoloyard.training.setup.settings import resumed
from yoloyard.training.setup.setup import new_run


def test_a_run_has_the_values_of_its_preset_and_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    given = {"data": str(write_demo(tmp_path / "demo", 0, 8, 2, 64)), "model": TINY_NETWORK, "imgsz": 64, "batch": 4}
    given |= {"project": str(tmp_path), "preset": "inspection", "copy_paste": 0.1, "belt_blur": 4.0}
    setup = new_run(given, torch.device("cpu"), "float32", 1)
    setup.keep()
    values = yaml.safe_load((setup.folder / "config.yaml").read_text())
    assert (values["preset"], values["copy_paste"], values["belt_blur"], values["rotate90"]) == (
        "inspection",
        0.1,
        4.0,
        "0",
    )
    rest = {name: value for name, value in PRESETS["inspection"].items() if name != "copy_paste"}
    assert rest.items() <= values.items()
    assert checked_overrides(TrainConfig, values).items() <= flat_settings(setup.config).items()  # --config config.yaml
    again = new_run(checked_overrides(TrainConfig, values | {"name": "again"}), torch.device("cpu"), "float32", 1)
    assert flat_settings(again.config) == flat_settings(setup.config) | {"name": "again"}
    assert resumed(setup.spec, {"preset": "inspection"}, 1, setup.folder, 0).config == setup.config
    with pytest.raises(UsageError, match="a resumed run can't change light"):
        resumed(setup.spec, {"light": 0.3}, 1, setup.folder, 0)


def test_a_preset_is_above_the_recipe_of_the_family() -> None:
    recipe, both = published("yolov13x", None), published("yolov13x", None, "inspection")
    assert (recipe["scale"], both["scale"], both["mixup"]) == (0.9, PRESETS["inspection"]["scale"], 0.2)
    for values in PRESETS.values():
        checked_overrides(TrainConfig, values)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preset": "inspector"}, "'preset' must be inspection, not 'inspector'"),
        ({"rotate90": 45}, "'rotate90' must be 0 or 180 or 90, not '45'"),
        ({"copy_paste": 2}, "'copy_paste' must be at most 1, not 2"),
        ({"belt_blur": -1}, "'belt_blur' must be at least 0, not -1"),
    ],
)
def test_wrong_values_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        checked_overrides(TrainConfig, wrong)
