"""Small ONNX files and export jobs, made without tracing a network."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tiny_network import Tiny
from yoloyard.config.settings import ExportConfig
from yoloyard.export.job import Job
from yoloyard.runtimes.metadata import BOXES, INPUT, SCORES, FileFacts

STRIDE = 32
CLASSES = 3


def job_in(folder: Path, weights: str = "best.safetensors", shape: tuple[int, int] | None = (64, 96)) -> Job:
    """A job of three classes whose weights were trained at 90 pixels."""
    names = ("scratch", "dent", "hole")
    facts = FileFacts("boxes", names, (8, STRIDE), shape, None, "float32", "0" * 64, "0.1.0", opset=18)
    metadata = {"names": list(names), "imgsz": 90}
    return Job(ExportConfig(), Path(weights), Tiny(CLASSES), metadata, facts, folder)


def write_boxes(path: Path, shape: tuple[int, int] | None = (64, 96)) -> Path:
    """Write a file with the names and shapes of `--outputs boxes`: a point for each cell of stride 32, any batch."""
    height, width = shape or ("height", "width")
    points: Any = (shape[0] // STRIDE) * (shape[1] // STRIDE) if shape else "points"
    channels = 4 + CLASSES
    weights = np.random.default_rng(0).normal(size=(channels, 3, STRIDE, STRIDE)).astype(np.float32)
    constants = {"weights": weights, "flat": np.array([0, channels, -1]), "sizes": np.array([4, CLASSES])}
    nodes = [
        helper.make_node("Conv", [INPUT, "weights"], ["map"], strides=[STRIDE, STRIDE]),
        helper.make_node("Reshape", ["map", "flat"], ["channels"]),
        helper.make_node("Transpose", ["channels"], ["rows"], perm=[0, 2, 1]),
        helper.make_node("Split", ["rows", "sizes"], [BOXES, SCORES], axis=2),
    ]
    outputs = {BOXES: ["batch", points, 4], SCORES: ["batch", points, CLASSES]}
    return _save(path, nodes, constants, {INPUT: ["batch", 3, height, width]}, outputs)


def write_maps(path: Path) -> Path:
    """Write a file with two raw maps: one of a convolution, one that joins those of two convolutions."""
    weights = np.zeros((4, 3, 8, 8), np.float32)
    nodes = [
        helper.make_node("Conv", [INPUT, "weights"], ["map_8"], name="last", strides=[8, 8]),
        helper.make_node("Conv", [INPUT, "weights"], ["box_logits"], name="last_box", strides=[16, 16]),
        helper.make_node("Conv", [INPUT, "weights"], ["class_logits"], name="last_class", strides=[16, 16]),
        helper.make_node("Concat", ["box_logits", "class_logits"], ["map_16"], name="join", axis=1),
    ]
    outputs: dict[str, list[Any]] = {"map_8": ["batch", 4, 8, 8], "map_16": ["batch", 8, 4, 4]}
    return _save(path, nodes, {"weights": weights}, {INPUT: ["batch", 3, 64, 64]}, outputs)


def _save(path: Path, nodes: Any, constants: Any, inputs: dict[str, Any], outputs: dict[str, Any]) -> Path:
    def values(of: dict[str, Any]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in of.items()]

    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "made", values(inputs), values(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path
