"""A network of the user's own and weights of another project, through the command line."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from commands import TINY, Command
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.models import registry
from yoloyard.models.heads import AnchorBasedHead
from yoloyard.models.weights import load_model, read_weights, save_weights
from yoloyard.training.listeners.results import read_records
from yoloyard.training.setup.setup import new_run

NETWORK = """\
import torch
from torch import nn
from yoloyard.models import yolo11

class Loud(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        if x.mean() > 100:  # depends on a number
            print("large")
        return x * self.scale

class Neck(yolo11.Neck):
    def __init__(self, scale):
        super().__init__(scale, all_c3k=False)
        self.loud = nn.ModuleList(Loud(channels) for channels in (64, 128, 256))

    def forward(self, p3, p4, p5):
        return [loud(x) for loud, x in zip(self.loud, super().forward(p3, p4, p5))]

def build(num_classes):
    detector = yolo11.build("n", num_classes)
    detector.neck = Neck(yolo11.SCALES["n"])
    return detector
"""
OWN = ["--imgsz", 64, "--batch", 4, "--no-amp", "--no-tensorboard", "--device", "cpu"]


@pytest.mark.slow
def test_an_own_network_trains_from_weights_and_is_used_from_the_runs_copy(data: Path, yoloyard: Command) -> None:
    classes = read_data_yaml(data).names
    official = registry.build("yolo11n", num_classes=len(classes))
    metadata = {"model": "yolo11n", "model_arguments": {"num_classes": len(classes)}, "names": list(classes)}
    save_weights(Path("official.safetensors"), official.state_dict(), metadata)
    file = Path("my_model.py")
    file.write_text(NETWORK)

    words = ["train", "--model", "./my_model.py:build", "--weights", "official.safetensors", "--data", data, *OWN]
    code, out, err = yoloyard(*words, "--epochs", 1)
    assert (code, err) == (0, "")
    assert "took 499 of 502 tensors; new: neck.loud (3)" in out
    run = Path("runs/line")
    assert (run / "my_model.py").read_text() == NETWORK
    weights = run / "weights" / "best.safetensors"
    _, kept = read_weights(weights)
    assert kept["model"] == "my_model.py:build"
    assert str(file.absolute()) in yaml.safe_load((run / "config.yaml").read_text())["model"]

    # the file is edited for the next idea; the run goes on, and its weights are used, with its copy
    file.write_text("this is no longer Python")
    assert yoloyard("train", "--resume", run, "--epochs", 2)[0] == 0
    code, _, err = yoloyard("val", "--weights", weights, "--data", data)
    assert (code, err) == (0, "")
    best = json.loads(Path("runs/val/metrics.json").read_text())
    assert best["map50_95"] == read_weights(weights)[1]["metrics"]["map50_95"]
    assert yoloyard("predict", "--weights", weights, data.parent / "images" / "val")[0] == 0
    code, out, _ = yoloyard("info", weights)
    assert code == 0
    assert "GFLOPs" in out
    assert yoloyard("train", "--weights", weights, "--data", data, "--epochs", 1, *OWN)[0] == 0


def test_weights_leave_the_anchors_of_an_own_network_as_the_user_gave_them(data: Path) -> None:
    classes = read_data_yaml(data).names
    official = registry.build("yolov5n", num_classes=len(classes))
    metadata = {"model": "yolov5n", "model_arguments": {"num_classes": len(classes)}, "names": list(classes)}
    save_weights(Path("official.safetensors"), official.state_dict(), metadata)
    Path("my_model.py").write_text(
        "from yoloyard.models import yolov5\n\ndef build(num_classes):\n"
        "    detector = yolov5.build('n', num_classes)\n    detector.head.anchors.fill_(7)\n    return detector\n"
    )
    words = {"model": "my_model.py:build", "weights": "official.safetensors", "data": str(data), "autoanchor": False}
    detector = new_run(words, torch.device("cpu"), "float32", 1).detector
    assert isinstance(detector.head, AnchorBasedHead)
    assert detector.head.anchors.unique().tolist() == [7]
    assert torch.equal(
        detector.state_dict()["head.predictions.0.weight"], official.state_dict()["head.predictions.0.weight"]
    )


def test_an_error_in_an_own_network_shows_its_line(data: Path, yoloyard: Command) -> None:
    Path("my_model.py").write_text(NETWORK.replace("x * self.scale", "x * self.scail"))
    code, _, err = yoloyard("train", "--model", "my_model.py:build", "--data", data, "--epochs", 1, *OWN)
    assert code == 1
    assert err.count("\n") == 1
    assert "my_model.py, line 13 (`return x * self.scail`): AttributeError" in err
    # one that shows itself only while training
    Path("my_model.py").write_text(NETWORK.replace("return x * self.scale", "return x * [1][len(x) - 1]"))
    code, _, err = yoloyard("train", "--model", "my_model.py:build", "--data", data, "--epochs", 1, *OWN)
    assert code == 1
    assert "my_model.py, line 13 (`return x * [1][len(x) - 1]`): IndexError" in err


@pytest.mark.parametrize("model", ["yolov5n", "yolo12n"])
def test_the_families_train_and_their_last_figures_are_those_of_val(model: str, data: Path, yoloyard: Command) -> None:
    code, out, err = yoloyard("train", "--model", model, "--data", data, "--epochs", 1, *TINY[2:])
    assert (code, err) == (0, "")
    records = read_records(Path("runs/line"))
    parts = {"box", "obj", "cls"} if model == "yolov5n" else {"box", "cls", "dfl"}
    assert {name.removeprefix("train/") for name in records[0] if name.startswith("train/")} == parts
    assert ("anchors fit" in out) == (model == "yolov5n")
    weights = Path("runs/line/weights/last.safetensors")
    assert yoloyard("val", "--weights", weights, "--data", data)[0] == 0
    figures = json.loads(Path("runs/val/metrics.json").read_text())
    assert figures == {name.removeprefix("val/"): v for name, v in records[-1].items() if name.startswith("val/")}
    assert load_model(weights)[1]["evaluation"]["iou"] == (0.6 if model == "yolov5n" else 0.7)
