"""The names that compilers of chips ask for."""

from pathlib import Path

from made_onnx import write_maps

from yoloyard.export.end_nodes import end_nodes


def test_a_map_that_joins_two_ends_at_both_of_their_convolutions(tmp_path: Path) -> None:
    assert end_nodes(write_maps(tmp_path / "maps.onnx")) == {
        "map_8": [("last", "map_8")],
        "map_16": [("last_box", "box_logits"), ("last_class", "class_logits")],
    }
