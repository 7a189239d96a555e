"""The names that compilers of chips ask for."""

import logging
from pathlib import Path

import pytest
from made_onnx import write_maps

from tiny_weights import write_tiny_weights
from yoloyard.config.settings import ExportConfig
from yoloyard.export.end_nodes import end_nodes
from yoloyard.export.export import TARGETS, export


def test_a_map_that_joins_two_ends_at_both_of_their_convolutions(tmp_path: Path) -> None:
    assert end_nodes(write_maps(tmp_path / "maps.onnx")) == {
        "map_8": [("last", "map_8")],
        "map_16": [("last_box", "box_logits"), ("last_class", "class_logits")],
    }


def test_an_export_of_raw_maps_says_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TARGETS, "onnx", lambda job: write_maps(job.path(".onnx")))  # tracing takes seconds
    weights = write_tiny_weights(tmp_path)
    with caplog.at_level(logging.INFO):
        export(ExportConfig(weights=str(weights), outputs="maps", project=str(tmp_path)))
    assert "map_8 ends at last (map_8)\n" in caplog.text
    assert "map_16 ends at last_box (box_logits), last_class (class_logits)\n" in caplog.text
