"""Which network and which weights a run starts with, as users of other projects say it."""

from pathlib import Path

import pytest
import torch

from yoloyard.common.errors import UsageError
from yoloyard.config.overrides import checked_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.models import registry
from yoloyard.models.weights import transfer
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


def test_branches_that_find_objects_once_are_asked_for() -> None:
    assert StartingPoint("yolo11n").arguments(3, end2end=True) == {"num_classes": 3, "paths": "both"}
    assert StartingPoint("yolo11n").arguments(3) == {"num_classes": 3}
    families = ", ".join(registry.families_with_paths())
    assert {"yolov8", "yolo11", "yolo12", "yolo26"} <= set(families.split(", "))
    for model in ("yolov5n", "/home/yolov8_of_mine.py:build"):
        with pytest.raises(UsageError, match=f"^--end2end is for {families}; {model} has no such branches$"):
            StartingPoint(model).arguments(3, end2end=True)


@pytest.mark.parametrize(
    ("model", "paths", "end2end", "trained"),
    [
        ("yolo26n", "one", False, None),  # fused for inference; without the argument there are both
        ("yolo26n", "many", True, "both"),
        ("yolo11n", "both", False, "both"),
        ("yolo11n", None, True, "both"),
    ],
)
def test_both_kinds_of_branches_are_trained_whatever_a_file_has_of_them(
    model: str, paths: str | None, end2end: bool, trained: str | None
) -> None:
    arguments = {"num_classes": 80, "class_width": 80} | ({"paths": paths} if paths else {})
    start = StartingPoint(model, metadata={"model": model, "model_arguments": arguments})
    chosen = start.arguments(3, end2end)
    assert chosen == {"num_classes": 3, "class_width": 80} | ({"paths": trained} if trained else {})
    with torch.device("meta"):
        assert registry.build(model, **chosen).head.criterion == "end_to_end"


@pytest.mark.parametrize("model", ["yolo11n", "yolo11s-p2", "yolov9t"])
def test_class_branches_are_taken_whatever_their_width_would_be_for_other_classes_and_levels(model: str) -> None:
    of_file = model.removesuffix("-p2")
    source = registry.build(of_file, num_classes=70)
    metadata = {"model": of_file, "model_arguments": {"num_classes": 70}}
    detector = registry.build(model, **StartingPoint(model, state=source.state_dict(), metadata=metadata).arguments(2))
    report = transfer(detector, source.state_dict(), ("a", "b"), tuple("abcdefg") * 10)
    taken, there = (sum("class_branches" in name for name in names) for names in (report.taken, source.state_dict()))
    assert taken == there - 2 * len(source.head.last_layers) > 0
    assert report.classes == ("a", "b")
