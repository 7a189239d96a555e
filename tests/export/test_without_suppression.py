"""Exports of the branches that find each object once: the best boxes of the network, and no suppression anywhere."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from two_paths import write_two_paths

from exported_files import document, write_onnx
from tiny_job import SHOWN
from tiny_weights import write_tiny_weights
from yoloyard.commands.model import Model
from yoloyard.commands.predict import json_rows
from yoloyard.common.boxes import pairwise_iou
from yoloyard.common.device import Precision
from yoloyard.common.errors import UsageError
from yoloyard.common.structures import Detections
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import EvaluationConfig, ExportConfig
from yoloyard.demo.write import demo_image
from yoloyard.evaluation.validate import detect
from yoloyard.export.export import Exported, export
from yoloyard.export.graph import best_pairs
from yoloyard.models.weights import load_model
from yoloyard.runtimes.load import load_runtime
from yoloyard.runtimes.network import Network
from yoloyard.serving.metrics import Metrics
from yoloyard.serving.served import Served

SETTINGS = EvaluationConfig(conf=SHOWN["conf"], max_det=40)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_paths(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def selecting(weights: Path) -> Exported:
    """As the weights file says, without `--suppression`."""
    return exported(weights, to="onnx,openvino,torchscript", outputs="nms", dynamic=True, max_det=SETTINGS.max_det)


def exported(weights: Path, **overrides: Any) -> Exported:
    settings = {"weights": weights, "project": weights.parent / "runs", **overrides}
    return export(with_overrides(ExportConfig(), settings))


def network_of(weights: Path, suppression: bool) -> Network:
    detector, metadata = load_model(weights)
    return Network(detector, torch.device("cpu"), Precision("cpu", torch.float32), metadata, suppression)


def found_by(network: Any, *sides: int) -> list[Detections]:
    drawings = np.stack([demo_image(0, "val", number, 96).pixels for number in range(3)])[:, : sides[0], : sides[1]]
    pixels = torch.from_numpy(drawings).permute(0, 3, 1, 2).contiguous()
    return detect(network, pixels, [None] * len(pixels), SETTINGS, multi_label=False)


def assert_same(found: list[Detections], expected: list[Detections]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=0, atol=0.02)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-4)
        assert ours.labels.tolist() == theirs.labels.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "openvino", "torchscript"])
@pytest.mark.parametrize("sides", [(96, 64), (32, 32)], ids=["more points than boxes", "fewer"])
def test_each_target_selects_the_boxes_that_the_weights_find_without_suppression(
    selecting: Exported, weights: Path, target: str, sides: tuple[int, int]
) -> None:
    expected = found_by(network_of(weights, False), *sides)
    assert min(len(each.scores) for each in expected) > 1
    found = found_by(load_runtime(selecting.files[target], "cpu"), *sides)
    assert_same(found, expected)


@pytest.mark.slow
def test_boxes_of_one_class_that_overlap_stay(selecting: Exported) -> None:
    found = found_by(load_runtime(selecting.files["onnx"]), 96, 96)
    overlaps = [
        torch.triu(pairwise_iou(each.boxes, each.boxes) * (each.labels[:, None] == each.labels), 1) for each in found
    ]
    assert max(float(each.max()) for each in overlaps) > 0.7


@pytest.mark.slow
def test_no_suppression_is_in_the_file_and_it_says_so(selecting: Exported) -> None:
    model = onnx.load(selecting.files["onnx"])
    assert "NonMaxSuppression" not in {node.op_type for node in model.graph.node}
    assert [each.name for each in model.graph.output] == ["detections"]
    [text] = [each.value for each in model.metadata_props]
    said = json.loads(text)
    assert said["file"]["needs_suppression"] is False
    assert said["file"]["suppression"] == {"conf": SHOWN["conf"], "iou": 1.0, "max_det": SETTINGS.max_det}
    assert said["evaluation"]["suppression"] == "off"
    facts = json.loads((selecting.folder / "preprocess.json").read_text())
    assert (facts["needs_suppression"], facts["suppression"]) == (False, said["file"]["suppression"])


@pytest.mark.slow
def test_all_files_are_compared_with_the_same_branches_of_the_weights(selecting: Exported) -> None:
    assert not selecting.parity.failures
    for row in selecting.parity.document["files"]:
        assert row["result"] == "within tolerance"
        assert row["matched"] > 100
        assert (row["torch_alone"], row["file_alone"], row["pixels"] < 0.02) == (0, 0, True)


def test_the_other_branches_are_exported_where_they_are_asked_for(weights: Path) -> None:
    done = exported(weights, to="torchscript", suppression="on")
    network = load_runtime(done.files["torchscript"])
    assert network.suppression is True
    assert_same(found_by(network, 96, 96), found_by(network_of(weights, True), 96, 96))
    assert not done.parity.failures


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"iou": 0.5, "outputs": "nms"}, "--iou is for suppression"),
        ({"suppression": "of"}, "'suppression' must be on or off, not 'of'"),
        ({"suppression": "on", "outputs": "nms", "to": "pt2"}, "--outputs nms can't be had as pt2, but as onnx"),
    ],
)
def test_what_does_not_fit_is_refused_without_a_folder(
    weights: Path, tmp_path: Path, overrides: dict[str, Any], line: str
) -> None:
    with pytest.raises(UsageError, match=line):
        exported(weights, project=tmp_path, **overrides)
    assert not list(tmp_path.iterdir())


def test_a_network_without_such_branches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no branches that find each object once: --suppression on"):
        exported(write_tiny_weights(tmp_path), suppression="off")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("needs_suppression", "own", "other"), [(True, "on", "off"), (False, "off", "on")])
def test_the_path_of_an_exported_file_can_not_be_changed(
    needs_suppression: bool, own: str, other: str, tmp_path: Path
) -> None:
    file = write_onnx(tmp_path / "best.onnx", document(needs_suppression=needs_suppression))
    assert Model(file, suppression=own).settings.suppression == own
    with pytest.raises(UsageError, match=rf"best\.onnx is for --suppression {own} alone: .* --suppression {other}"):
        Model(file, suppression=other)


class TestSelection:
    """Source of the first case: the published selection, the best points first and then the best pairs of these."""

    def test_takes_the_best_pairs_of_box_and_class(self) -> None:
        points, classes = torch.meshgrid(torch.arange(10), torch.arange(3), indexing="ij")
        scores = (((5 * points + 7 * classes + 3) % 17) / 20 + points / 1000 + classes / 10000)[None]
        boxes = (torch.arange(10.0)[:, None] + torch.arange(4.0))[None]
        [rows] = best_pairs(boxes, scores, 0.0, 6)
        expected = [(8, 1, 0.8081), (6, 0, 0.8060), (3, 2, 0.7532), (1, 1, 0.7511), (9, 0, 0.7090), (6, 2, 0.6562)]
        assert [(box, label) for box, *_, label in rows.tolist()] == [(box, label) for box, label, _ in expected]
        assert rows[:, 4].tolist() == pytest.approx([score for *_, score in expected])
        assert rows[:, 1].tolist() == [box + 1 for box, *_ in expected]

    @pytest.mark.parametrize("max_det", [5, 100])
    def test_ends_with_class_minus_one_below_the_lowest_score(self, max_det: int) -> None:
        random = torch.Generator().manual_seed(0)
        boxes, scores = torch.rand(2, 20, 4, generator=random), torch.rand(2, 20, 3, generator=random)
        found = best_pairs(boxes, scores, 0.8, max_det)
        assert found.shape == (2, max_det, 6)
        for rows, each in zip(found, scores, strict=True):
            expected = each[each > 0.8].sort(descending=True).values[:max_det]
            count = len(expected)
            assert torch.equal(rows[:count, 4], expected)
            assert (rows[count:] == torch.tensor([0, 0, 0, 0, 0, -1.0])).all()


def test_the_server_answers_what_predict_finds(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "once.onnx", document(needs_suppression=False))
    image = tmp_path / "image.png"
    Image.fromarray(demo_image(0, "val", 1, 150).pixels // 16).save(image)  # dark: all scores are near 0.5
    model = Model(file)
    expected = json_rows(model(image), model.names)
    assert len({tuple(row["box_xyxy"]) for row in expected}) < len(expected)  # a box has several classes
    with ThreadPoolExecutor(1) as decoders:
        [answer] = Served("once", str(file), 4, Metrics(), decoders).predict([image.read_bytes()])
    assert answer["detections"] == expected
