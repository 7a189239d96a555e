"""A detector of two convolutions as an ONNX file, made without torch's exporter, and an export job for it."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tiny_network import Tiny
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import ExportConfig
from yoloyard.export.job import Job
from yoloyard.runtimes.metadata import FileFacts

SIDE = 64  # pixels
CELLS = 64  # 8 x 8
NAMES = ("a", "b")

SCOPES = "pkg.torch.onnx.name_scopes"  # as torch's exporter calls them

GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
small (float[N, 3, 64, 64] images) => (float[N, 64, 4] boxes, float[N, 64, 2] scores)
<int64[2] parts = {4, 2}, int64[3] flat = {0, 6, 64}, float reach = {640.0}>
{
    stem = Conv <kernel_shape = [8, 8], strides = [8, 8]> (images, stem_weight)
    gate = Sigmoid (stem)
    active = Mul (stem, gate)
    maps = Conv <kernel_shape = [1, 1]> (active, head_weight)
    rows = Reshape (maps, flat)
    turned = Transpose <perm = [0, 2, 1]> (rows)
    sides, logits = Split <axis = 2> (turned, parts)
    near = Sigmoid (sides)
    boxes = Mul (near, reach)
    scores = Sigmoid (logits)
}
"""


# Each of four edges takes a share of each of 1,600 cells, as attention and hypergraphs do.
SHARES = """
<ir_version: 8, opset_import: ["" : 18]>
shares (float[N, 3, 40, 40] images) => (float[N, 6, 8, 1] boxes)
<int64[3] flat = {0, 8, 1600}, int64[4] square = {0, 4, 8, 1}>
{
    stem = Conv <kernel_shape = [1, 1]> (images, stem_weight)
    rows = Reshape (stem, flat)
    logits = MatMul (edge_weight, rows)
    shares = Softmax <axis = 2> (logits)
    turned = Transpose <perm = [0, 2, 1]> (rows)
    edges = MatMul (shares, turned)
    map = Reshape (edges, square)
    boxes = Conv <kernel_shape = [1, 1]> (map, head_weight)
}
"""


def write_shares(path: Path) -> Path:
    """Write the graph SHARES with random weights."""
    model = onnx.parser.parse_model(SHARES)
    random = np.random.default_rng(0)
    for name, shape in {"stem_weight": (8, 3, 1, 1), "edge_weight": (4, 8), "head_weight": (6, 4, 1, 1)}.items():
        model.graph.initializer.append(numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name))
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def write_graph(path: Path) -> Path:
    """Write the graph; its convolutions lie in the parts `stem.conv` and `head.last` of the network."""
    model = onnx.parser.parse_model(GRAPH)
    random = np.random.default_rng(0)
    weights = {"stem_weight": (8, 3, 8, 8), "head_weight": (6, 8, 1, 1)}
    for name, shape in weights.items():
        weight = random.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    parts = {"stem": "stem.conv", "gate": "stem.activation", "active": "stem.activation", "maps": "head.last"}
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
        if part := parts.get(node.output[0]):
            scopes = ["", "detector", f"detector.{part.partition('.')[0]}", f"detector.{part}", node.output[0]]
            node.metadata_props.append(
                onnx.StringStringEntryProto(key="pkg.torch.onnx.name_scopes", value=repr(scopes))
            )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def job_in(folder: Path, shape: tuple[int, int] | None = (SIDE, SIDE), **settings: object) -> Job:
    """An export of a tiny network into `folder`."""
    config = with_overrides(ExportConfig(), settings)
    facts = FileFacts("boxes", NAMES, (8, 32), shape, None, "float32", "0" * 64, "0.1.0", opset=18)
    metadata = {"names": list(NAMES), "imgsz": SIDE, "licence": "näive"}
    return Job(config, folder / "best.safetensors", Tiny(2).eval(), metadata, facts, folder)
