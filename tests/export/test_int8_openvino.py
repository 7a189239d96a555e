"""Quantisation by nncf, with files of torch's exporter."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

from tiny_job import tiny_job
from yoloyard.common.errors import UsageError
from yoloyard.demo.write import write_demo
from yoloyard.export import int8, onnx_file, openvino_file
from yoloyard.export.calibration import calibration_images
from yoloyard.export.job import Job
from yoloyard.runtimes.document import read_document
from yoloyard.runtimes.load import load_runtime

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo") / "demo", train=40, val=4, size=96)


def job_for(folder: Path, data: Path, **settings: Any) -> Job:
    return tiny_job(folder, int8=True, data=str(data), calibration_images=40, **settings)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Job:
    """An export for any size, in 8 bits for ONNX Runtime, OpenVINO and TensorRT, and in float."""
    job = job_for(tmp_path_factory.mktemp("export"), data, shape=None)
    onnx_file.write(job)
    openvino_file.write(job)
    int8.write_onnx(job)
    int8.write_onnx(job, symmetric=True)
    return job


def operations_after_quantisation(path: Path) -> dict[str, set[str]]:
    """Kinds of operations by the kind of what gives their inputs, behind a step of quantisation."""
    found: dict[str, set[str]] = {}
    for each in openvino.Core().read_model(path).get_ops():
        if each.get_type_name() == "FakeQuantize":
            before = each.input_value(0).get_node().get_type_name()
            found.setdefault(before, set()).update(
                target.get_node().get_type_name() for target in each.output(0).get_target_inputs()
            )
    return found


def test_every_form_is_written_under_its_name(job: Job) -> None:
    assert {path.name for path in job.folder.iterdir()} == {
        "best.onnx",
        "best.int8.onnx",
        "best.int8.tensorrt.onnx",
        "best.int8.xml",
        "best.int8.bin",
    }


def test_convolutions_are_quantised_and_the_decoding_is_not(job: Job) -> None:
    after = operations_after_quantisation(job.path(".xml", "int8"))
    assert "Convolution" in set().union(*after.values())
    assert not {"Softmax", "Sigmoid", "Concat", "Reshape", "VariadicSplit"} & set().union(*after.values())


def test_activations_are_not_taken_apart(job: Job) -> None:
    """A quantised gate of SiLU costs time and accuracy: OpenVINO computes the whole function in one step."""
    kinds = [each.get_type_name() for each in openvino.Core().read_model(job.path(".xml", "int8")).get_ops()]
    assert "Swish" in kinds


HAS_VNNI = "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")


def test_boxes_and_scores_follow_those_of_float32(job: Job) -> None:
    """A network of random, large weights shows each rounding; that of a trained one is measured in docs/choices.md."""
    image = next(iter(calibration_images(job)))
    expected = outputs_of(job.path(".onnx"), image)
    for name in ("best.int8.onnx", "best.int8.tensorrt.onnx", "best.int8.xml"):
        for ours, theirs in zip(outputs_of(job.folder / name, image), expected, strict=True):
            assert not np.array_equal(ours, theirs), name
            # Without VNNI, ONNX Runtime cuts sums of two products off at 16 bits.
            assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > (0.95 if HAS_VNNI else 0.8), name


def outputs_of(path: Path, image: np.ndarray) -> list[np.ndarray]:
    """Boxes and scores, by OpenVINO for all files."""
    found = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(image)
    return [found["boxes"], found["scores"]]


def test_suppression_inside_a_file_goes_on_working(data: Path, tmp_path: Path) -> None:
    job = job_for(tmp_path, data, outputs="nms", shape=None)
    [rows] = openvino.Core().compile_model(int8.write_onnx(job), "CPU")(next(iter(calibration_images(job)))).values()
    assert rows.shape == (1, 20, 6)
    assert 0 < (rows[..., 5] >= 0).sum() < 20


def test_it_says_what_it_is(job: Job) -> None:
    document = read_document(job.path(".xml", "int8"))
    assert document is not None
    assert document["file"]["precision"] == "int8"
    assert load_runtime(job.path(".xml", "int8"), "cpu").fixed_shape is None


def test_parts_that_keep_float_names_stay_in_float(data: Path, tmp_path: Path) -> None:
    job = job_for(tmp_path, data, keep_float="head.class_branches,head.box_branches")
    network = openvino.Core().read_model(openvino_file.write(job))
    convolutions = [each for each in network.get_ops() if each.get_type_name() == "Convolution"]
    quantised = [each for each in convolutions if each.input_value(1).get_node().get_type_name() != "Constant"]
    assert (len(convolutions), len(quantised)) == (15, 3)  # stem, fine, coarse


def test_an_unknown_part_is_an_error_before_images_are_read(data: Path, tmp_path: Path) -> None:
    job = job_for(tmp_path, data, keep_float="head.class_branch")
    with pytest.raises(UsageError, match=r"did you mean 'head\.class_branches'"):
        openvino_file.write(job)


def test_nothing_is_printed(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    openvino_file.write(job_for(tmp_path, data))
    assert capfd.readouterr() == ("", "")
