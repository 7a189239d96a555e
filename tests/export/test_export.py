"""Exports of a tiny network: what the files compute, what they carry, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from tiny_weights import NAMES, write_tiny_weights
from torch import Tensor

from yoloyard.commands.model import Model
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import ExportConfig
from yoloyard.evaluation.validate import detect
from yoloyard.export.export import Exported, export
from yoloyard.models.detector import Detector
from yoloyard.models.weights import load_model
from yoloyard.runtimes.metadata import KEY


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def detector(weights: Path) -> Detector:
    return load_model(weights)[0]


@pytest.fixture(scope="module")
def fixed(weights: Path) -> Exported:
    return exported(weights, to="onnx,pt2,torchscript")


@pytest.fixture(scope="module")
def dynamic(weights: Path) -> Exported:
    return exported(weights, to="onnx,pt2,torchscript", dynamic=True)


@pytest.fixture(scope="module")
def suppressing(weights: Path) -> Exported:
    return exported(weights, outputs="nms", dynamic=True)


@pytest.fixture(scope="module")
def half(weights: Path) -> Exported:
    return exported(weights, outputs="maps", half=True)


def exported(weights: Path, **overrides: Any) -> Exported:
    settings = {"weights": weights, "project": weights.parent / "runs", **overrides}
    return export(with_overrides(ExportConfig(), settings))


def images_of(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def outputs_of(path: Path, images: Tensor) -> list[Tensor]:
    """What a file of any target computes."""
    if path.suffix == ".onnx":
        found = onnxruntime.InferenceSession(path).run(None, {"images": images.numpy()})
        return [torch.from_numpy(each) for each in found]
    program = torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(str(path))
    return list(program(images))


def document_of(path: Path) -> Any:
    """The metadata that a file of any target carries."""
    extra = {KEY: ""}
    if path.suffix == ".onnx":
        [extra[KEY]] = [each.value for each in onnx.load(path).metadata_props if each.key == KEY]
    elif path.suffix == ".pt2":
        torch.export.load(path, extra_files=extra)
    else:
        torch.jit.load(str(path), _extra_files=extra)
    return json.loads(extra[KEY])


@pytest.mark.parametrize("target", ["onnx", "pt2", "torchscript"])
class TestEachTarget:
    def test_gives_the_boxes_and_scores_of_the_weights_for_any_batch(
        self, fixed: Exported, detector: Detector, target: str
    ) -> None:
        for batch in (1, 2, 5):
            images = images_of(batch, 3, 96, 96)
            assert_equal(outputs_of(fixed.files[target], images), detector, images)

    def test_takes_any_multiples_of_the_stride_if_dynamic(
        self, dynamic: Exported, detector: Detector, target: str
    ) -> None:
        for sides in ((64, 64), (160, 96), (96, 352)):
            images = images_of(3, 3, *sides)
            assert_equal(outputs_of(dynamic.files[target], images), detector, images)

    def test_carries_the_metadata_of_the_weights_and_how_it_is_used(
        self, fixed: Exported, dynamic: Exported, target: str
    ) -> None:
        document = document_of(fixed.files[target])
        assert document["licence"] == "Apache-2.0"
        assert document["file"]["names"] == NAMES
        assert document["file"]["strides"] == [8, 32]
        assert document["file"]["shape"] == [96, 96]
        assert document["file"]["outputs"] == "boxes"
        assert len(document["file"]["weights_sha256"]) == 64
        assert document_of(dynamic.files[target])["file"]["shape"] is None

    def test_names_no_folder_of_this_machine(self, fixed: Exported, weights: Path, target: str) -> None:
        content = fixed.files[target].read_bytes()
        assert os.fsencode(weights.parent) not in content
        assert os.fsencode(Path(__file__).parents[2]) not in content


def assert_equal(found: list[Tensor], detector: Detector, images: Tensor) -> None:
    """Rounding alone, of a network fused with its normalisation: thousandths of a pixel."""
    with torch.no_grad():
        boxes, scores = detector.decode(detector(images))
    torch.testing.assert_close(found[0], boxes, rtol=0, atol=2e-3)
    torch.testing.assert_close(found[1], scores, rtol=0, atol=1e-4)


def test_an_onnx_file_is_one_file_of_opset_18_with_named_inputs_and_outputs(dynamic: Exported) -> None:
    model = onnx.load(dynamic.files["onnx"], load_external_data=False)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert document_of(dynamic.files["onnx"])["file"]["opset"] == 18
    assert not [each for each in model.graph.initializer if each.external_data]
    assert [each.name for each in (*model.graph.input, *model.graph.output)] == ["images", "boxes", "scores"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_onnx_takes_an_image_of_one_cell(dynamic: Exported, detector: Detector) -> None:
    images = images_of(1, 3, 32, 96)
    assert_equal(outputs_of(dynamic.files["onnx"], images), detector, images)


class TestSuppressionInside:
    def test_gives_the_detections_of_predict(self, suppressing: Exported, weights: Path) -> None:
        assert_detections(suppressing.files["onnx"], Model(weights), images_of(4, 3, 96, 160))

    def test_ends_where_there_is_no_box(self, suppressing: Exported) -> None:
        [found] = outputs_of(suppressing.files["onnx"], torch.zeros(2, 3, 64, 64))
        nothing = found[found[..., 5] < 0]
        assert len(nothing)
        assert (nothing == torch.tensor([0, 0, 0, 0, 0, -1.0])).all()

    def test_takes_its_settings_from_the_command_else_from_what_predict_shows(
        self, suppressing: Exported, weights: Path
    ) -> None:
        facts = document_of(suppressing.files["onnx"])["file"]
        assert facts["suppression"] == {"conf": 0.3, "iou": 0.45, "max_det": 300}
        file = exported(weights, outputs="nms", conf=0.6, iou=0.2, max_det=4).files["onnx"]
        assert document_of(file)["file"]["suppression"] == {"conf": 0.6, "iou": 0.2, "max_det": 4}
        assert_detections(file, Model(weights, conf=0.6, iou=0.2, max_det=4), images_of(4, 3, 96, 96))


def assert_detections(file: Path, model: Model, images: Tensor) -> None:
    pixels = (images * 255).to(torch.uint8)
    [rows] = outputs_of(file, pixels.float() / 255)
    expected = detect(model.network, pixels, [None] * len(pixels), model.settings, multi_label=False)
    assert sum(map(len, (each.scores for each in expected))) > len(images)
    for found, each in zip(rows, expected, strict=True):
        assert (found[:, 5] >= 0).sum() == len(each.scores)
        boxes, scores, labels = found[: len(each.scores)].split((4, 1, 1), dim=1)
        torch.testing.assert_close(boxes, each.boxes, rtol=0, atol=2e-3)
        torch.testing.assert_close(scores[:, 0], each.scores, rtol=0, atol=1e-4)
        assert labels[:, 0].tolist() == each.labels.tolist()


def test_half_keeps_weights_in_float16_and_its_ends_in_float32(half: Exported, detector: Detector) -> None:
    path = half.files["onnx"]
    assert path.name == "tiny.float16.onnx"
    model = onnx.load(path)
    kinds = {each.data_type for each in model.graph.initializer if len(each.dims) == 4}
    assert kinds == {onnx.TensorProto.FLOAT16}
    ends = [each.type.tensor_type.elem_type for each in (*model.graph.input, *model.graph.output)]
    assert set(ends) == {onnx.TensorProto.FLOAT}
    assert document_of(path)["file"]["precision"] == "float16"


def test_maps_are_the_raw_maps_by_their_strides(half: Exported, detector: Detector) -> None:
    assert [each.name for each in onnx.load(half.files["onnx"]).graph.output] == ["map_8", "map_32"]
    images = images_of(2, 3, 96, 96)
    with torch.no_grad():
        expected = detector(images)
    for found, level in zip(outputs_of(half.files["onnx"], images), expected, strict=True):
        torch.testing.assert_close(found, level, rtol=0.02, atol=0.1)  # of float16
