"""Files of MultimediaTechLab's YOLOv9: what released files and checkpoints of a training hold is read by its names."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from yoloyard.common.errors import UserError
from yoloyard.models import registry
from yoloyard.models.detector import Detector
from yoloyard.models.importing.importers import read_checkpoint
from yoloyard.models.importing.yolov9_files import names_in_files
from yoloyard.models.weights import load_model
from yoloyard.training.setup.starting_point import StartingPoint, build_detector, starting_point

PROJECTION = "heads.{}.anc2vec.anc2vec.weight"


@pytest.fixture(scope="module")
def detector() -> Detector:
    """As of a file whose class branches are narrower than the formula says."""
    torch.manual_seed(0)
    return registry.build("yolov9t", 3, class_width=80, auxiliary_class_width=96).eval()


def published(detector: Detector) -> dict[str, Tensor]:
    """The tensors of `detector` as the project writes them."""
    own = detector.state_dict()
    tensors = {name: own[own_name] for own_name, name in names_in_files(detector).items()}
    heads = {int(name.split(".")[0]) for name in tensors if ".anchor_conv." in name}
    constant = torch.arange(16.0).view(1, 16, 1, 1, 1)
    return tensors | {f"{head}.{PROJECTION.format(level)}": constant for head in heads for level in range(3)}


@pytest.fixture(scope="module")
def tensors(detector: Detector) -> dict[str, Tensor]:
    return published(detector)


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def test_names_are_the_published_ones(tensors: dict[str, Tensor]) -> None:
    assert len(tensors) == 1776
    assert {
        "0.conv.weight": (16, 3, 3, 3),
        "2.conv1.conv.weight": (32, 32, 1, 1),
        "2.conv3.bn.running_var": (16,),
        "3.conv.conv.weight": (64, 32, 3, 3),
        "4.conv2.0.conv2.conv.weight": (16, 32, 1, 1),
        "4.conv3.0.bottleneck.2.conv1.conv1.conv.weight": (16, 16, 3, 3),
        "4.conv3.0.bottleneck.2.conv1.conv2.conv.weight": (16, 16, 1, 1),
        "4.conv3.0.bottleneck.2.conv2.bn.weight": (16,),
        "4.conv3.1.conv.weight": (32, 32, 3, 3),
        "4.conv4.bn.num_batches_tracked": (),
        "9.conv5.conv.weight": (128, 256, 1, 1),
        "21.conv4.conv.weight": (128, 256, 1, 1),
        "22.heads.1.anchor_conv.1.conv.weight": (64, 16, 3, 3),
        "22.heads.2.anchor_conv.2.bias": (64,),
        "22.heads.0.class_conv.2.weight": (3, 80, 1, 1),
        "23.conv1.conv.weight": (64, 128, 1, 1),
        "29.conv1.conv.weight": (64, 160, 1, 1),
        "30.heads.2.class_conv.2.weight": (3, 96, 1, 1),
    }.items() <= {name: tuple(tensor.shape) for name, tensor in tensors.items()}.items()


def test_names_of_a_second_backbone_are_the_published_ones() -> None:
    with torch.device("meta"):
        tensors = published(registry.build("yolov9c", 80))
    assert len(tensors) == 1464
    assert {
        "3.conv1.conv.weight": (128, 128, 3, 3),
        "3.conv2.conv.weight": (128, 128, 1, 1),
        "25.conv.weight": (1280, 512, 1, 1),
        "25.conv.bias": (1280,),
        "26.conv.weight": (64, 3, 3, 3),
        "37.conv4.conv.weight": (512, 1024, 1, 1),
        "38.heads.0.anchor_conv.0.conv.weight": (128, 512, 3, 3),
        "38.heads.0.class_conv.0.conv.weight": (512, 512, 3, 3),
    }.items() <= {name: tuple(tensor.shape) for name, tensor in tensors.items()}.items()


def test_a_released_file_is_read_with_the_widths_of_its_tensors(
    detector: Detector, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    loaded, metadata = load_model(saved(halves, tmp_path / "v9-t.pt"))
    assert metadata["model"] == "yolov9t"
    assert metadata["model_arguments"] == {
        "num_classes": 3,
        "channels": 3,
        "class_width": 80,
        "auxiliary": True,
        "auxiliary_class_width": 96,
    }
    assert metadata["names"] == ["class_0", "class_1", "class_2"]  # such a file has none
    assert (metadata["licence"], metadata["imgsz"]) == ("MIT", 640)
    assert [(step["what"], step["licence"]) for step in metadata["history"]] == [("imported", "MIT")]
    own = detector.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, own[name].half().to(tensor.dtype)), name


def test_of_a_checkpoint_of_a_training_the_averaged_weights_are_taken(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    last = {f"model.model.{name}": torch.zeros_like(tensor) for name, tensor in tensors.items()}
    averaged = {f"ema.model.{name}": tensor for name, tensor in tensors.items()}
    more = {"epoch": 3, "hyper_parameters": {"lr": 0.01}}
    both, only_last = more | {"state_dict": last | averaged}, more | {"state_dict": last}
    state, _ = read_checkpoint(saved(both, tmp_path / "both.ckpt.pt"))
    assert torch.equal(state["backbone.downsample1.conv.weight"], tensors["0.conv.weight"])
    state, _ = read_checkpoint(saved(only_last, tmp_path / "last.pt"))
    assert not state["backbone.downsample1.conv.weight"].any()


def test_a_file_without_auxiliary_branch_finds_boxes_and_trains_with_a_fresh_one(
    detector: Detector, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    left = {name: tensor for name, tensor in tensors.items() if int(name.split(".")[0]) <= 22}
    left = {name: tensor for name, tensor in left.items() if not name.endswith("num_batches_tracked")}
    path = saved(left, tmp_path / "v9-t.pt")
    loaded, metadata = load_model(path)
    assert metadata["model_arguments"] == {"num_classes": 3, "channels": 3, "class_width": 80, "auxiliary": False}
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for level, both in zip(loaded(images), detector(images), strict=True):
            assert torch.equal(level, both[:, :67])

    start: StartingPoint = starting_point({"weights": str(path)})
    trained = build_detector(start.model, None, start.arguments(3))
    fresh = {name: tensor.clone() for name, tensor in trained.state_dict().items() if "auxiliary" in name}
    assert start.transfer(trained, ("class_0", "class_1", "class_2")) == "MIT"
    state = trained.state_dict()
    assert torch.equal(state["backbone.downsample1.conv.weight"], tensors["0.conv.weight"])
    assert len(fresh) == 1776 - 3 - 1341 + 3 - 3
    assert all(torch.equal(state[name], tensor) for name, tensor in fresh.items())


def test_eighty_classes_are_those_of_coco(tmp_path: Path) -> None:
    content = published(registry.build("yolov9t", 80, auxiliary=False))
    _, metadata = read_checkpoint(saved(content, tmp_path / "v9-t.pt"))
    assert (metadata["names"][0], metadata["names"][9], metadata["names"][79]) == (
        "person",
        "traffic light",
        "toothbrush",
    )
    assert len(set(metadata["names"])) == 80


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("0.bn.weight", (2,), r"0\.bn\.weight is missing or has another shape"),
        ("9.bn.weight", (2,), r"0\.bn\.weight is missing or has another shape"),
        ("0.conv.weight", (24, 3, 3, 3), "none of the sizes t, s, m, c"),
        ("0.conv.weight", (16,), "none of the sizes t, s, m, c"),
        ("22.heads.0.class_conv.2.weight", (3,), "none of the sizes t, s, m, c"),
    ],
)
def test_other_networks_are_refused(
    name: str, shape: tuple[int, ...], message: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    needed = ("0.conv.weight", "2.conv1.conv.weight", "22.heads.0.class_conv.2.weight")
    content = {name: tensors[name] for name in needed} | {name: torch.zeros(shape)}
    with pytest.raises(UserError, match=message):
        read_checkpoint(saved(content, tmp_path / "other.pt"))


@pytest.mark.parametrize("name", ["2.conv5.conv.weight", "30.heads.3.class_conv.2.weight"])
def test_a_file_with_more_tensors_than_the_network_is_refused(
    name: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"a yolov9t has no {re.escape(name)}"):
        read_checkpoint(saved(tensors | {name: torch.zeros(2)}, tmp_path / "other.pt"))


def test_tensors_of_another_kind_are_no_network(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no network"):
        read_checkpoint(saved({"0.conv.weight": tensors["0.conv.weight"]}, tmp_path / "other.pt"))
