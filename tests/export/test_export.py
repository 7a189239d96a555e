"""Exports of a tiny network: what the files compute, what they carry, and what is refused."""

import copy
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor

from tiny_job import NAMES, SHOWN
from tiny_weights import write_tiny_weights
from yoloyard.cli.main import main
from yoloyard.commands.model import Model
from yoloyard.common.errors import UsageError, UserError
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import ExportConfig
from yoloyard.demo.write import demo_image
from yoloyard.evaluation.validate import detect
from yoloyard.export import programs
from yoloyard.export.export import TARGETS, Exported, export
from yoloyard.export.job import Job
from yoloyard.models.detector import Detector
from yoloyard.models.registry import build
from yoloyard.models.weights import load_model, save_weights
from yoloyard.runtimes.metadata import KEY


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def detector(weights: Path) -> Detector:
    return load_model(weights)[0]


@pytest.fixture(scope="module")
def dynamic(weights: Path) -> Exported:
    return exported(weights, to="onnx,pt2,torchscript", dynamic=True)


@pytest.fixture(scope="module")
def networks(dynamic: Exported) -> dict[str, Callable[[Tensor], Sequence[Tensor]]]:
    return {target: opened(path) for target, path in dynamic.files.items()}


@pytest.fixture(scope="module")
def suppressing(weights: Path) -> Exported:
    return exported(weights, to="tensorrt,triton,openvino", outputs="nms")


def exported(weights: Path, **overrides: Any) -> Exported:
    settings = {"weights": weights, "project": weights.parent / "runs", **overrides}
    return export(with_overrides(ExportConfig(), settings))


def images_of(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(7))


def opened(path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    """What a file of any target computes, by its own library alone."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        return lambda images: [torch.from_numpy(each) for each in session.run(None, {"images": images.numpy()})]
    if path.suffix == ".xml":
        network = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda images: [torch.from_numpy(each) for each in network(images.numpy()).values()]
    program: Callable[[Tensor], Sequence[Tensor]] = (
        torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(path)
    )
    return program


def document_of(path: Path) -> Any:
    """The metadata that a file of any target carries."""
    extra = {KEY: ""}
    if path.suffix == ".onnx":
        [extra[KEY]] = [each.value for each in onnx.load(path).metadata_props if each.key == KEY]
    elif path.suffix == ".pt2":
        torch.export.load(path, extra_files=extra)
    else:
        torch.jit.load(path, _extra_files=extra)
    return json.loads(extra[KEY])


def assert_equal(found: Sequence[Tensor], detector: Detector, images: Tensor) -> None:
    """Rounding alone, of a network fused with its normalisation: hundredths of a pixel at most."""
    with torch.no_grad():
        boxes, scores = detector.decode(detector(images))
    torch.testing.assert_close(found[0], boxes, rtol=0, atol=0.02)
    torch.testing.assert_close(found[1], scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("target", ["onnx", "pt2", "torchscript"])
class TestEachTarget:
    @pytest.mark.parametrize("shape", [(1, 96, 96), (2, 64, 160), (5, 352, 64)])
    def test_gives_the_boxes_and_scores_of_the_weights_for_any_batch_and_size(
        self, networks: Any, detector: Detector, target: str, shape: tuple[int, int, int]
    ) -> None:
        images = images_of(shape[0], 3, *shape[1:])
        with torch.no_grad():
            assert_equal(networks[target](images), detector, images)

    def test_carries_the_metadata_of_the_weights_and_how_it_is_used(self, dynamic: Exported, target: str) -> None:
        document = document_of(dynamic.files[target])
        assert document["licence"] == "Apache-2.0"
        assert document["file"]["names"] == list(NAMES)
        assert document["file"]["strides"] == [8, 32]
        assert document["file"]["shape"] is None
        assert document["file"]["outputs"] == "boxes"
        assert document["file"]["precision"] == "float32"
        assert len(document["file"]["weights_sha256"]) == 64

    def test_names_no_folder_of_this_machine(self, dynamic: Exported, weights: Path, target: str) -> None:
        content = dynamic.files[target].read_bytes()
        assert os.fsencode(weights.parent) not in content
        assert os.fsencode(Path(__file__).parents[2]) not in content


def test_an_onnx_file_is_one_file_of_opset_18_with_named_inputs_and_outputs(dynamic: Exported) -> None:
    model = onnx.load(dynamic.files["onnx"], load_external_data=False)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert document_of(dynamic.files["onnx"])["file"]["opset"] == 18
    assert not [each for each in model.graph.initializer if each.external_data]
    assert [each.name for each in (*model.graph.input, *model.graph.output)] == ["images", "boxes", "scores"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_onnx_takes_an_image_of_one_cell_in_height(networks: Any, detector: Detector) -> None:
    images = images_of(1, 3, 32, 96)
    assert_equal(networks["onnx"](images), detector, images)


def test_an_export_brings_a_client_and_a_comparison_that_passes(dynamic: Exported) -> None:
    files = {path.name for path in dynamic.folder.iterdir() if not path.name.startswith(".")}
    assert files == {
        *(path.name for path in dynamic.files.values()),
        "client.py",
        "preprocess.json",
        "parity.json",
        "parity.html",
    }
    assert not dynamic.parity.failures


def test_folders_for_other_machines_hold_the_onnx_file_that_is_compared(suppressing: Exported) -> None:
    assert list(suppressing.files) == ["onnx", "openvino", "triton", "tensorrt"]
    content = suppressing.files["onnx"].read_bytes()
    assert (suppressing.files["triton"] / "tiny" / "1" / "model.onnx").read_bytes() == content
    assert (suppressing.files["tensorrt"] / "tiny.onnx").read_bytes() == content


class TestSuppressionInside:
    @pytest.mark.parametrize("target", ["onnx", "openvino"])
    def test_gives_the_detections_of_predict_and_ends_with_class_minus_one(
        self, suppressing: Exported, weights: Path, target: str
    ) -> None:
        drawings = np.stack([demo_image(0, "val", number, 96).pixels for number in range(4)])
        pixels = torch.from_numpy(drawings).permute(0, 3, 1, 2)
        [rows] = opened(suppressing.files[target])(pixels.float() / 255)
        model = Model(weights)
        expected = detect(model.network, pixels, [None] * len(pixels), model.settings, multi_label=False)
        assert sum(len(each.scores) for each in expected) > 20
        for found, each in zip(rows, expected, strict=True):
            count = len(each.scores)
            boxes, scores, labels = found[:count].split((4, 1, 1), dim=1)
            torch.testing.assert_close(boxes, each.boxes, rtol=0, atol=0.02)
            torch.testing.assert_close(scores[:, 0], each.scores, rtol=0, atol=1e-4)
            assert labels[:, 0].tolist() == each.labels.tolist()
            assert len(found) == 300 > count
            assert (found[count:] == torch.tensor([0, 0, 0, 0, 0, -1.0])).all()

    def test_has_by_default_the_settings_of_predict_and_the_square_of_the_weights(self, suppressing: Exported) -> None:
        facts = document_of(suppressing.files["onnx"])["file"]
        assert facts["suppression"] == {**SHOWN, "max_det": 300}
        assert facts["shape"] == [96, 96]


def test_half_maps_are_raw_and_float32_of_weights_in_float16(weights: Path, detector: Detector) -> None:
    done = exported(weights, outputs="maps", half=True, to="torchscript")
    path = done.files["torchscript"]
    assert path.name == "tiny.float16.torchscript"
    assert document_of(path)["file"]["precision"] == "float16"
    assert {each.dtype for each in torch.jit.load(path).parameters()} == {torch.float16}
    images = images_of(2, 3, 96, 96)
    with torch.no_grad():
        expected, maps = detector(images), opened(path)(images)
    for found, level in zip(maps, expected, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, level, rtol=0.02, atol=0.1)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"weights": ""}, "say which weights file"),
        ({"to": "onxn"}, "unknown target 'onxn'; did you mean 'onnx'?"),
        ({"to": ","}, "say what to export to"),
        ({"outputs": "box"}, "did you mean 'boxes'?"),
        ({"imgsz": 64, "dynamic": True}, "--imgsz fixes the size and --dynamic leaves it open"),
        ({"int8": True}, "--int8 needs images to calibrate with"),
        ({"int8": True, "half": True}, "two precisions"),
        ({"keep_float": "head"}, "--keep-float is for --int8"),
        ({"calibration_images": 5}, "--calibration-images is for --int8"),
        ({"conf": 0.5}, "are for --outputs nms"),
        ({"to": "torchscript", "int8": True, "data": "data.yaml"}, "--int8 can't be had as torchscript, but as onnx"),
    ],
)
def test_settings_that_can_not_be_are_refused_before_anything_is_read(overrides: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as raised:
        export(with_overrides(ExportConfig(), {"weights": "missing.safetensors", **overrides}))
    assert line in str(raised.value)


def test_data_of_other_classes_are_refused_before_a_file_is_written(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: a\nval: a\nnames: [a, b]\n")
    with pytest.raises(UsageError, match=r"tiny\.safetensors knows 5 classes .*data\.yaml has 2"):
        exported(weights, data=str(tmp_path / "data.yaml"), int8=True, project=tmp_path)
    assert not (tmp_path / "export").exists()


def test_files_of_weights_in_an_object_store_have_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("yoloyard.export.export.compare", lambda job, files: None)
    monkeypatch.setitem(TARGETS, "torchscript", lambda job: job.path(".torchscript"))  # tracing takes seconds
    facts = {"model": "yolov5n", "model_arguments": {"num_classes": 2}}
    path = tmp_path / "run" / "weights" / "best.safetensors"
    save_weights(path, build("yolov5n", num_classes=2).state_dict(), facts)
    done = export(ExportConfig(weights=f"file://{path}", to="torchscript", project=str(tmp_path)))
    assert done.files["torchscript"].name == "best.torchscript"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("tiny.onnx", "is an exported file"),
        ("noise.safetensors", "not a whole weight file"),
        ("missing.pt", "missing.pt"),
    ],
)
def test_what_is_no_weights_file_is_refused_without_a_folder(tmp_path: Path, name: str, line: str) -> None:
    (tmp_path / "tiny.onnx").touch()
    (tmp_path / "noise.safetensors").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match=line):
        exported(tmp_path / name)
    assert not (tmp_path / "runs").exists()


class TestCustomModels:
    @pytest.mark.parametrize("target", ["onnx", "torchscript"])
    def test_a_line_that_torch_can_not_trace_is_named(
        self, tmp_path: Path, target: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        line = "fine = self.fine(self.stem(images))"
        weights = write_tiny_weights(tmp_path, line, f"{line}\n        fine = fine if fine.sum() > -1 else -fine")
        lines = weights.with_name("tiny_network.py").read_text().splitlines()
        [number] = [number for number, text in enumerate(lines, 1) if "fine.sum()" in text]
        with pytest.raises(UserError, match=rf"tiny_network.py, line {number} .*fine.sum\(\) > -1.*torch can't trace"):
            exported(weights, to=target)
        assert not (tmp_path / "runs" / "export").exists()  # there is nothing to see in it
        assert capfd.readouterr().err == ""  # torch prints its graph

    def test_sizes_that_tracing_would_fix_are_an_error(self, tmp_path: Path) -> None:
        line = "fine = self.fine(self.stem(images))"
        weights = write_tiny_weights(
            tmp_path, line, f"{line}\n        fine = fine * fine.new_ones(len(images), 1, 1, 1)"
        )
        with pytest.raises(UserError, match=r"tiny_network.py.*torch can't trace"):
            exported(weights, to="torchscript")


def test_a_missing_package_is_named_with_its_command(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r'pip install "yoloyard\[onnx\]"'):
        exported(weights)


@pytest.mark.parametrize("ending", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_full_disk_and_control_c_leave_no_half_file(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ending: BaseException
) -> None:
    def write_half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:1000])
        raise ending

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises((UserError, KeyboardInterrupt), match=r"cannot write .*: No space left|^$"):
        exported(weights, to="torchscript", project=tmp_path)
    assert not list(tmp_path.iterdir())


class TestCommand:
    def test_prints_one_document_and_nothing_of_torch_and_ends_with_1_where_a_file_is_too_far_off(
        self, weights: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def write_another(job: Job) -> Path:
            detector: Any = copy.deepcopy(job.detector)
            with torch.no_grad():
                detector.head.box_branches[0][2].bias[:8] += 9
            return programs.write_torchscript(replace(job, detector=detector))

        monkeypatch.setitem(TARGETS, "torchscript", write_another)
        with pytest.raises(SystemExit) as ended:
            main(["export", str(weights), "--to", "torchscript", "--project", str(tmp_path), "--json"])
        out, err = capfd.readouterr()
        said = err.splitlines()
        document = json.loads(out)
        file = tmp_path / "export" / "tiny.torchscript"
        assert ended.value.code == 1
        assert document["files"] == {"torchscript": str(file)}
        assert document["failures"]
        assert said[:2] == [f"torchscript: {file}", "comparing the files with the weights"]
        assert said[2:] == [f"yoloyard: not all files find what the weights find: {'; '.join(document['failures'])}"]
        assert file.exists()

    def test_refuses_two_weights_files(self, capfd: Any) -> None:
        with pytest.raises(SystemExit):
            main(["export", "a.safetensors", "--weights", "b.safetensors"])
        assert "two weights files are named" in capfd.readouterr().err
