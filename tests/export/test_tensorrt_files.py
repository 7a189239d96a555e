"""`--to tensorrt`: the folder that goes to the GPU's machine, and the engine where TensorRT is.

No TensorRT runs here. A stand-in has the names of its API that the documentation of 10.3 and 11.4 gives, and no more: a
flag for precision, for example, it doesn't have.
"""

import dataclasses
import importlib.machinery
import json
import logging
import re
import sys
import types
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
import torch
from made_onnx import job_in, write_boxes

from yoloyard.common.digests import file_sha256
from yoloyard.common.errors import UserError
from yoloyard.config.settings import ExportConfig
from yoloyard.export import tensorrt
from yoloyard.runtimes.document import read_document


class StandIn(types.ModuleType):
    """The package `tensorrt`, of which one object plays all parts. `reasons`: why it can't read a file."""

    Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, level: None})
    NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})

    def __init__(self, version: str, reasons: tuple[str, ...] = (), engine: bytes | None = b"an engine") -> None:
        super().__init__("tensorrt")
        self.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None, origin="tensorrt/__init__.py")
        self.__version__, self.reasons, self.engine = version, reasons, engine
        self.calls: dict[str, tuple[Any, ...]] = {}
        self.num_errors = len(reasons)

    def Builder(self, logger: Any) -> "StandIn":  # noqa: N802
        return self

    def OnnxParser(self, network: Any, logger: Any) -> "StandIn":  # noqa: N802
        return self

    def create_network(self, flags: int) -> "StandIn":
        self.calls["create_network"] = (flags,)
        return self

    def create_builder_config(self) -> "StandIn":
        return self

    create_optimization_profile = create_builder_config

    def set_shape(self, *arguments: Any) -> None:
        self.calls["set_shape"] = arguments

    def add_optimization_profile(self, profile: Any) -> None:
        self.calls["add_optimization_profile"] = (profile,)

    def parse(self, content: bytes) -> bool:
        self.calls["parse"] = (content,)
        return not self.reasons

    def get_error(self, index: int) -> str:
        return self.reasons[index]

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        return self.engine


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives this process a GPU, and the stand-in that it is called with."""

    def start(package: StandIn) -> StandIn:
        monkeypatch.setitem(sys.modules, "tensorrt", package)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 7))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Orin")
        return package

    return start


def written(folder: Path, shape: tuple[int, int] | None = (64, 96)) -> Path:
    return tensorrt.write(job_in(folder, shape=shape), write_boxes(folder / "best.onnx", shape))


def test_without_tensorrt_the_folder_has_the_file_and_a_command_for_each_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        folder = written(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "best.onnx"]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    shapes = [f"--{name}Shapes=images:{batch}x3x64x96" for name, batch in (("min", 1), ("opt", 1), ("max", 8))]
    flags = f"--onnx=best.onnx --saveEngine=best.engine {' '.join(shapes)}"
    assert re.findall("^    (.*)$", readme, re.MULTILINE) == [f"trtexec --stronglyTyped {flags}", f"trtexec {flags}"]
    assert "no TensorRT with a GPU here" in caplog.text
    assert not folder.name.isidentifier()  # it must not be imported as the package


def test_a_file_of_any_size_is_for_shapes_from_one_stride_to_the_size_of_the_training(tmp_path: Path) -> None:
    readme = (written(tmp_path, None) / "README.md").read_text(encoding="utf-8")
    assert "--minShapes=images:1x3x32x32 --optShapes=images:1x3x96x96 --maxShapes=images:8x3x96x96" in readme
    job = dataclasses.replace(job_in(tmp_path, shape=None), config=ExportConfig(imgsz=(60, 150)))
    wide = tensorrt.write(job, tmp_path / "best.onnx")
    assert "--maxShapes=images:8x3x64x160" in (wide / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("version", "flags"), [("10.3.0", 1 << 1), ("11.4.0.106", 0)])
def test_where_tensorrt_is_an_engine_of_the_precision_in_the_file_is_built(
    version: str, flags: int, machine: Any, tmp_path: Path
) -> None:
    calls = machine(StandIn(version)).calls
    folder = written(tmp_path)
    assert (folder / "best.engine").read_bytes() == b"an engine"
    assert calls["create_network"] == (flags,)
    assert calls["parse"] == ((folder / "best.onnx").read_bytes(),)
    assert calls["set_shape"] == ("images", (1, 3, 64, 96), (1, 3, 64, 96), (8, 3, 64, 96))
    assert "add_optimization_profile" in calls


def test_a_sidecar_says_where_the_engine_runs_and_what_the_network_is(machine: Any, tmp_path: Path) -> None:
    machine(StandIn("10.3.0"))
    folder = written(tmp_path)
    sidecar = json.loads((folder / "best.engine.json").read_text(encoding="utf-8"))
    assert {key: sidecar[key] for key in ("tensorrt", "gpu", "compute_capability")} == {
        "tensorrt": "10.3.0",
        "gpu": "Orin",
        "compute_capability": "8.7",
    }
    assert sidecar["onnx_sha256"] == file_sha256(folder / "best.onnx")
    document = read_document(folder / "best.engine")
    assert document is not None
    assert document["names"] == ["scratch", "dent", "hole"]
    assert document["file"]["max_batch"] == sidecar["shapes"]["max"][0] == 8


def test_a_file_that_tensorrt_refuses_gives_its_reasons_in_one_line(machine: Any, tmp_path: Path) -> None:
    machine(StandIn("10.3.0", ("In node 3:\nno importer for Foo", "In node 4: bad")))
    with pytest.raises(UserError) as error:
        written(tmp_path)
    assert str(error.value).endswith("best.onnx: In node 3: no importer for Foo; In node 4: bad")
    assert str(error.value).startswith("TensorRT 10.3.0 can't read ")
    assert not list(tmp_path.rglob("*.engine*"))


def test_an_engine_that_could_not_be_built_is_an_error(machine: Any, tmp_path: Path) -> None:
    machine(StandIn("11.4.0.106", engine=None))
    with pytest.raises(UserError, match=r"could not build an engine of .*best\.onnx"):
        written(tmp_path)
    assert not list(tmp_path.rglob("*.engine*"))
