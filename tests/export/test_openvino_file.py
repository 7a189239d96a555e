"""OpenVINO files: one is written whole, says what it is, and computes what the ONNX file computes."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
from small_graph import SIDE, job_in, write_graph

from yoloyard.common.errors import UserError
from yoloyard.export import openvino_file
from yoloyard.export.job import Job
from yoloyard.runtimes.document import read_document


def outputs_of(path: Path, images: np.ndarray) -> list[np.ndarray]:
    network = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = network(images)
    return [found["boxes"], found["scores"]]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """An export whose ONNX file is there already."""
    write_graph(tmp_path / "best.onnx")
    return job_in(tmp_path)


def test_it_computes_what_the_onnx_file_computes_for_any_batch(job: Job) -> None:
    path = openvino_file.write(job)
    assert path.name == "best.xml"
    assert sorted(each.name for each in job.folder.iterdir()) == ["best.bin", "best.onnx", "best.xml"]
    images = np.random.default_rng(0).random((3, 3, SIDE, SIDE), np.float32)
    for mine, theirs in zip(outputs_of(path, images), outputs_of(job.folder / "best.onnx", images), strict=True):
        assert mine.shape[0] == 3
        assert np.abs(mine - theirs).max() < 1e-3


def test_half_keeps_weights_in_float16_and_takes_float32(job: Job) -> None:
    path = openvino_file.write(job_in(job.folder, half=True))
    assert path.name == "best.float16.xml"
    kinds = Counter(
        each.get_element_type().get_type_name()
        for each in openvino.Core().read_model(path).get_ops()
        if each.get_type_name() == "Constant" and len(each.get_output_shape(0)) == 4
    )
    assert kinds == {"f16": 2}  # the two convolutions
    images = np.random.default_rng(0).random((1, 3, SIDE, SIDE), np.float32)
    for mine, theirs in zip(outputs_of(path, images), outputs_of(job.folder / "best.onnx", images), strict=True):
        assert mine.dtype == np.float32
        assert np.abs(mine - theirs).max() < 1  # of 640 pixels


def test_of_equal_scores_the_first_ones_are_kept_as_in_predict(job: Job) -> None:
    graph = """<ir_version: 8, opset_import: ["" : 18]>
    best (float[N, M] images) => (int64[N, 2] detections) <int64[1] two = {2}> { s, detections = TopK (images, two) }
    """
    onnx.save(onnx.parser.parse_model(graph), job.path(".onnx"))
    network = openvino.Core().compile_model(openvino_file.write(job), "CPU")
    assert network(np.full((1, 9), 0.5, np.float32))["detections"].tolist() == [[0, 1]]


@pytest.mark.parametrize(("half", "precision"), [(False, "float32"), (True, "float16")])
def test_its_document_is_that_of_the_onnx_file(job: Job, half: bool, precision: str) -> None:
    document = read_document(openvino_file.write(job_in(job.folder, half=half)))
    assert document is not None
    assert (document["licence"], document["file"]["precision"]) == ("näive", precision)
    assert document["file"]["names"] == ["a", "b"]


def test_a_full_disk_leaves_no_file(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(UserError, match="No space left"):
        openvino_file.write(job)
    assert [each.name for each in job.folder.iterdir()] == ["best.onnx"]


def test_nothing_is_printed(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    openvino_file.write(job)
    assert capfd.readouterr() == ("", "")
