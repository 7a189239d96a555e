"""What `yoloyard licence FILE` says of files of all kinds, and of those that say little."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from commands import exit_code
from tiny_network import Tiny
from yoloyard.common.errors import UserError
from yoloyard.common.lineage import longer_history, step
from yoloyard.config.settings import ExportConfig
from yoloyard.export.job import Job
from yoloyard.licences.record import read_record
from yoloyard.models.weights import save_weights
from yoloyard.runtimes.metadata import KEY, FileFacts

IMPORTED = step("imported", "yolo11n.pt", "ab" * 32, "AGPL-3.0", program="ultralytics 8.3.0")
RANDOM = {"model": "yolo11n", "licence": None, "history": longer_history({}, "trained", None, None, data="line/a.yaml")}
TUNED = {
    "model": "yolo11n",
    "licence": "AGPL-3.0",
    "history": [IMPORTED, step("trained", "yolo11n.pt", "ab" * 32, "AGPL-3.0", data="line/data.yaml")],
}
OLD_CONFIG = {"data": "/home/anna/line/data.yaml", "weights": "/home/anna/runs/a/best.safetensors"}


@pytest.fixture
def written(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Writes a weights file with this metadata."""

    def write(metadata: dict[str, Any]) -> Path:
        save_weights(tmp_path / "best.safetensors", {"a": torch.zeros(1)}, metadata)
        return tmp_path / "best.safetensors"

    return write


def document_of(metadata: dict[str, Any], folder: Path) -> str:
    """What an exported file of these weights carries."""
    facts = FileFacts("boxes", ["a"], [8, 32], (64, 64), None, "float32", "cd" * 32, "0.1.0")
    return Job(ExportConfig(), folder / "best.safetensors", Tiny(1), metadata, facts, folder).document()


def test_every_step_is_named_with_what_went_into_it(written: Callable[[dict[str, Any]], Path]) -> None:
    path = written(TUNED)
    found = read_record(path)
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [each["what"] for each in found["history"]] == ["imported", "trained"]
    assert found["history"][1]["data"] == "line/data.yaml"
    assert found["history"][1]["sha256"] == found["history"][0]["sha256"]
    assert found["licences"] == ["AGPL-3.0"]
    assert "under AGPL-3.0: a product that contains the result must be offered" in found["meaning"]


def test_an_onnx_file_says_it_was_exported_from_which_weights(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["images"], ["boxes"])
    boxes = onnx.helper.make_tensor_value_info("boxes", onnx.TensorProto.FLOAT, [1])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [boxes]))
    onnx.helper.set_model_props(model, {KEY: document_of(TUNED, tmp_path)})
    onnx.save(model, tmp_path / "best.onnx")
    found = read_record(tmp_path / "best.onnx")
    assert [each["what"] for each in found["history"]] == ["imported", "trained", "exported"]
    last = found["history"][-1]
    assert (last["file"], last["sha256"], last["licence"]) == ("best.safetensors", "cd" * 32, "AGPL-3.0")


def test_an_export_names_no_folder_and_no_address_of_the_training(tmp_path: Path) -> None:
    config = OLD_CONFIG | {"notify": "https://chat.example/anna", "classes": "0", "single_cls": False}
    document = document_of({"model": "m", "config": config, "versions": {}}, tmp_path)
    assert "anna" not in document
    assert json.loads(document)["config"] == {"classes": "0", "single_cls": False}
    assert [each["data"] for each in json.loads(document)["history"][:1]] == ["line/data.yaml"]


@pytest.mark.slow
def test_programs_of_torch_and_openvinos_files_say_it_too(tmp_path: Path) -> None:
    document = document_of(RANDOM, tmp_path)
    script = torch.jit.trace(torch.nn.ReLU(), torch.zeros(1))
    torch.jit.save(script, tmp_path / "best.torchscript", _extra_files={KEY: document})
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(1),))
    torch.export.save(program, tmp_path / "best.pt2", extra_files={KEY: document})
    attribute = document.replace("&", "&amp;").replace('"', "&quot;")
    (tmp_path / "best.xml").write_text(f'<net><rt_info><{KEY} value="{attribute}"/></rt_info></net>')
    for suffix in (".torchscript", ".pt2", ".xml"):
        found = read_record(tmp_path / f"best{suffix}")
        assert [each["what"] for each in found["history"]] == ["trained", "exported"]
        assert found["meaning"].startswith("trained from random weights")


@pytest.mark.parametrize(
    ("metadata", "history", "meaning"),
    [
        (
            {"model": "m", "licence": "AGPL-3.0", "config": OLD_CONFIG, "versions": {"yoloyard": "0.0.9"}},
            [("trained", "best.safetensors", "AGPL-3.0")],
            "under AGPL-3.0",
        ),
        (
            {"model": "m", "licence": None, "config": OLD_CONFIG},
            [("trained", "best.safetensors", None)],
            "not recorded",
        ),
        (
            {"model": "m", "licence": None, "config": {"data": "data.yaml", "weights": None}},
            [("trained", None, None)],
            "random weights",
        ),
        (
            {"model": "m", "licence": "AGPL-3.0", "versions": {"yolov5": "7.0"}},
            [("imported", None, "AGPL-3.0")],
            "under AGPL-3.0",
        ),
        ({}, [], "doesn't say what it came from"),
        (
            {"model": "m", "config": OLD_CONFIG, "history": "long"},
            [("trained", "best.safetensors", None)],
            "not recorded",
        ),
    ],
)
def test_a_file_of_an_older_version_says_what_is_known(
    metadata: dict[str, Any],
    history: list[tuple[str, str | None, str | None]],
    meaning: str,
    written: Callable[[dict[str, Any]], Path],
) -> None:
    found = read_record(written(metadata))
    assert [(each["what"], each["file"], each["licence"]) for each in found["history"]] == history
    assert meaning in found["meaning"]
    assert "anna" not in json.dumps(found["history"])


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    for name in ("best.safetensors", "best.onnx", "best.xml", "best.pt2", "best.pt", "notes.txt"):
        with pytest.raises(UserError, match=name):
            read_record(tmp_path / name)
        (tmp_path / name).write_bytes(b"noise")
        with pytest.raises(UserError, match=name):
            read_record(tmp_path / name)


def test_the_command_prints_a_step_a_line_and_what_they_mean(
    written: Callable[[dict[str, Any]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = {"model": "m", "licence": "MIT\x1b[2K", "history": [IMPORTED | {"licence": "MIT\x1b[2K"}]}
    path = written(TUNED)
    assert exit_code("licence", path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"imported: file yolo11n.pt, sha256 {'ab' * 6}, licence AGPL-3.0, program ultralytics 8")
    assert lines[1].startswith("trained: file yolo11n.pt")
    assert len(lines) == 3
    assert exit_code("licence", path, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document.keys() == {"file", "sha256", "history", "licences", "meaning"}
    assert exit_code("licence", written(hostile)) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["best.onnx", "--environment"], ["--sbom", "a.json"]])
def test_what_is_asked_for_must_be_clear(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("licence", *arguments) == 2
    assert "say either FILE, or --environment with or without --sbom OUT.json" in capsys.readouterr().err
