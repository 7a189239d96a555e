"""Quantised files: what stays in float, and that boxes and scores hardly change."""

import json
import logging
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from small_graph import CELLS, SIDE, job_in, write_graph, write_shares

from yoloyard.common.errors import UsageError
from yoloyard.export.calibration import CalibrationImages
from yoloyard.export.int8 import Node, beyond_convolutions, kept_nodes, quantise_onnx
from yoloyard.runtimes.metadata import KEY

QUANTISERS = ("QuantizeLinear", "DequantizeLinear")


@pytest.fixture(scope="module")
def images() -> CalibrationImages:
    """Noise in place of decoded images."""
    random = np.random.default_rng(1)
    return [random.random((1, 3, SIDE, SIDE), np.float32) for _ in range(4)]  # type: ignore[return-value]


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graph(tmp_path_factory.mktemp("float") / "best.onnx")


@pytest.fixture(scope="module")
def quantised(float_file: Path, images: CalibrationImages) -> Path:
    out = float_file.with_name("best.int8.onnx")
    quantise_onnx(float_file, out, job_in(float_file.parent, int8=True), images)
    return out


def outputs_of(path: Path, image: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["boxes", "scores"], {"images": image})


def quantised_nodes(path: Path) -> set[str]:
    """Names of nodes one of whose inputs or outputs is quantised."""
    nodes = onnx.load(path).graph.node
    tensors = {name for node in nodes if node.op_type in QUANTISERS for name in (*node.input, *node.output)}
    return {node.name for node in nodes if node.op_type not in QUANTISERS and tensors & {*node.input}}


def test_a_node_stays_in_float_where_no_convolution_is_reached_from_it() -> None:
    nodes = [
        Node("first", "Conv", ["images", "weight"], ["a"]),
        Node("gate", "Sigmoid", ["a"], ["b"]),
        Node("active", "Mul", ["a", "b"], ["c"]),
        Node("shape", "Shape", ["a"], ["d"]),
        Node("head", "Convolution", ["c"], ["e"]),
        Node("anchor", "Mul", ["constant", "d"], ["f"]),
        Node("decode", "Sub", ["e", "f"], ["boxes"]),
        Node("side", "Sigmoid", ["c"], ["scores"]),
    ]
    assert set(beyond_convolutions(nodes)) == {"shape", "anchor", "decode", "side"}


def test_a_graph_without_convolutions_stays_in_float() -> None:
    assert beyond_convolutions([Node("all", "MatMul", ["images"], ["boxes"])]) == ["all"]


def test_the_decoding_stays_in_float(quantised: Path) -> None:
    assert quantised_nodes(quantised) >= {"node_stem", "node_gate", "node_active", "node_maps"}
    assert not quantised_nodes(quantised) & {"node_turned", "node_sides", "node_near", "node_boxes", "node_scores"}


def test_boxes_and_scores_hardly_change(float_file: Path, quantised: Path, images: list[np.ndarray]) -> None:
    (boxes, scores), (boxes8, scores8) = outputs_of(float_file, images[0]), outputs_of(quantised, images[0])
    assert boxes8.shape == (1, CELLS, 4)
    assert 0 < np.abs(boxes8 - boxes).max() < 10  # of 640 pixels
    assert 0 < np.abs(scores8 - scores).max() < 0.02


@pytest.mark.skipif(
    platform.machine() == "x86_64" and "vnni" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"),
    reason="without VNNI sums of two products are cut off at 16 bits, which three inputs and large weights exceed",
)
def test_shares_of_many_cells_do_not_become_zero(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    images = [random.random((1, 3, 40, 40), np.float32) for _ in range(4)]
    float_file, out = write_shares(tmp_path / "best.onnx"), tmp_path / "best.int8.onnx"
    quantise_onnx(float_file, out, job_in(tmp_path, int8=True), images)  # type: ignore[arg-type]
    found, expected = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images[0]})[0]
        for path in (out, float_file)
    )
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_batches_of_any_size_are_taken(quantised: Path, images: list[np.ndarray]) -> None:
    together = outputs_of(quantised, np.concatenate(images))
    assert np.array_equal(together[0][2], outputs_of(quantised, images[2])[0][0])


def test_the_file_says_that_it_is_int8(quantised: Path) -> None:
    document = json.loads({each.key: each.value for each in onnx.load(quantised).metadata_props}[KEY])
    assert (document["file"]["precision"], document["licence"]) == ("int8", "näive")
    assert document["file"]["shape"] == [SIDE, SIDE]


def test_the_symmetric_file_has_zero_points_of_0_and_no_quantised_bias(
    float_file: Path, images: CalibrationImages, tmp_path: Path
) -> None:
    """TensorRT takes no other (NVIDIA's page "Working with Quantized Types")."""
    out = tmp_path / "best.int8.tensorrt.onnx"
    quantise_onnx(float_file, out, job_in(tmp_path, int8=True), images, symmetric=True)
    graph = onnx.load(out).graph
    values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    zero_points = [values[node.input[2]] for node in graph.node if node.op_type in QUANTISERS]
    assert zero_points
    assert all(each.dtype == np.int8 and not each.any() for each in zero_points)
    assert not any(node.op_type == "DequantizeLinear" and node.input[0] in values for node in graph.node)
    quantised = [node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert sorted(quantised) == ["active", "head_weight", "images", "stem_weight"]


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ("stem", {"node_stem", "node_gate", "node_active"}),
        ("stem.activation", {"node_gate", "node_active"}),
        ("head.last, node_stem", {"node_maps", "node_stem"}),
        (None, set()),
    ],
)
def test_keep_float_takes_parts_of_the_network_and_nodes(float_file: Path, names: str | None, kept: set[str]) -> None:
    assert kept_nodes(onnx.load(float_file), names) == kept


def test_what_keep_float_names_keeps_its_weights(float_file: Path, images: CalibrationImages, tmp_path: Path) -> None:
    quantise_onnx(float_file, tmp_path / "out.onnx", job_in(tmp_path, int8=True, keep_float="head"), images)
    weights = {
        node.name: node.input[1] for node in onnx.load(tmp_path / "out.onnx").graph.node if node.op_type == "Conv"
    }
    assert weights["node_maps"] == "head_weight"
    assert weights["node_stem"] != "stem_weight"


@pytest.mark.parametrize(("wrong", "near"), [("head.lasst", "head.last"), ("stem.convolution", "stem.conv")])
def test_an_unknown_name_in_keep_float_is_an_error_that_names_the_nearest(
    float_file: Path, wrong: str, near: str
) -> None:
    with pytest.raises(UsageError, match=f"--keep-float: unknown part of the network '{wrong}'; did you mean '{near}'"):
        kept_nodes(onnx.load(float_file), wrong)


def test_nothing_is_printed_and_logging_stays_as_it_was(
    float_file: Path, images: CalibrationImages, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = logging.root.handlers[:], logging.getLogger("nncf").level
    quantise_onnx(float_file, tmp_path / "out.onnx", job_in(tmp_path, int8=True), images)
    assert capfd.readouterr() == ("", "")
    assert (logging.root.handlers, logging.getLogger("nncf").level) == before


def test_temporary_files_are_removed_and_a_failure_leaves_no_file(
    float_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, folder = tmp_path / "temporary", tmp_path / "out"
    temporary.mkdir()
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def breaks() -> Iterator[np.ndarray]:
        yield np.zeros((1, 3, SIDE, SIDE), np.float32)
        raise UsageError("an image is gone")

    with pytest.raises(UsageError, match="an image is gone"):
        quantise_onnx(float_file, folder / "out.onnx", job_in(folder, int8=True), breaks())  # type: ignore[arg-type]
    assert not [*temporary.iterdir(), *folder.iterdir()]
