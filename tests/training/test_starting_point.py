"""Which network and which weights a run starts with, as users of other projects say it."""

from pathlib import Path

import pytest

from yoloyard.common.errors import UsageError
from yoloyard.config.overrides import checked_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.models import registry
from yoloyard.training.setup.starting_point import StartingPoint, starting_point


@pytest.mark.parametrize(
    ("words", "model"),
    [
        ({"weights": "", "cfg": "yolov5n.yaml"}, "yolov5n"),
        ({"weights": "", "cfg": "models/yolov5n.yaml"}, "yolov5n"),
        ({"cfg": "models/hub/yolov5s6.yaml"}, "yolov5s6"),
        ({"model": "yolo11n.yaml"}, "yolo11n"),
        ({"model": "/somewhere/else/yolo12x.YML"}, "yolo12x"),
        ({"weights": "", "cfg": "", "device": ""}, "yolo11n"),
        ({"weights": None}, "yolo11n"),
    ],
)
def test_a_network_may_be_named_as_others_name_it(words: dict[str, str], model: str) -> None:
    assert starting_point(checked_overrides(TrainConfig, words)) == StartingPoint(model)
    assert registry.build(model, num_classes=1).num_classes == 1


@pytest.mark.parametrize("name", ["models/my.yaml", "yolov5.yaml", "yolov5n.json", "yolo11n.yaml.txt", "x.engine"])
def test_a_network_that_is_not_here_is_named_as_it_was_said(name: str) -> None:
    with pytest.raises(UsageError, match=f"unknown model '{name}'.*FILE.py:FUNCTION; a weights file ends in"):
        registry.build(starting_point(checked_overrides(TrainConfig, {"model": name})).model, num_classes=1)


def test_a_weights_file_may_be_called_pth(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"cannot read the weights .*no\.pth: No such file"):
        starting_point({"model": str(tmp_path / "no.pth")})
