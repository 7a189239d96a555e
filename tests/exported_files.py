"""Exported files of a network of one convolution: made in milliseconds, with the metadata that an export writes.

Each patch of 32 x 32 pixels has a box and a score for each of two classes.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from yoloyard.runtimes.metadata import BOXES, DETECTIONS, INPUT, KEY, SCORES, FileFacts

NAMES = ("scratch", "dent")
STRIDE = 32


class Patches(nn.Module):
    """images (B, 3, H, W), 0 .. 1, to boxes (B, P, 4) xyxy, of about 0 to 32 pixels, and scores (B, P, 2)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4 + len(NAMES), STRIDE, STRIDE)
        nn.init.normal_(self.conv.weight, std=0.2)
        with torch.no_grad():
            self.conv.bias[:] = torch.tensor([4.0, 8, 24, 30, 0, 0])  # type: ignore[index]
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        boxes, scores = self.conv(images).flatten(2).split((4, len(NAMES)), dim=1)
        return boxes.transpose(1, 2), scores.sigmoid().transpose(1, 2)


def document(**facts: Any) -> str:
    """The metadata of a file, with these `facts`."""
    known: dict[str, Any] = {"outputs": "boxes", "shape": None, "max_batch": None, "precision": "float32"}
    file = FileFacts(names=NAMES, strides=(STRIDE,), weights_sha256="0", yoloyard="0", **known | facts)
    showing = {"conf": 0.4, "iou": 0.6}
    return json.dumps({"names": NAMES, "imgsz": 64, "showing": showing, "model": "patches", "file": file.as_dict()})


def write_onnx(
    path: Path,
    text: str | None = None,
    shape: Sequence[int | str] = ("batch", 3, "height", "width"),
    outputs: Sequence[str] = (BOXES, SCORES),
    opset: int = 18,
) -> Path:
    """`Patches` as an ONNX file. `outputs` may be `joined` alone, (B, 4 + C, P) as other programs write it."""
    network = Patches()
    arrays = {
        **network.conv.state_dict(),
        "flat": torch.tensor([0, 4 + len(NAMES), -1]),
        "sizes": torch.tensor([4, len(NAMES)]),
    }
    nodes = [
        helper.make_node("Conv", [INPUT, "weight", "bias"], ["maps"], strides=[STRIDE] * 2),
        helper.make_node("Reshape", ["maps", "flat"], ["rows"]),
        helper.make_node("Split", ["rows", "sizes"], ["box_rows", "logits"], axis=1),
        helper.make_node("Sigmoid", ["logits"], ["score_rows"]),
        helper.make_node("Transpose", ["box_rows"], [BOXES], perm=[0, 2, 1]),
        helper.make_node("Transpose", ["score_rows"], [SCORES], perm=[0, 2, 1]),
        helper.make_node("Concat", ["box_rows", "score_rows"], ["joined"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "patches",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value.numpy(), name) for name, value in arrays.items()],
    )
    return save_onnx(path, graph, text, opset)


def write_suppressed_onnx(path: Path, rows: Sequence[Sequence[float]]) -> Path:
    """An ONNX file that finds `rows` in each image, a row left, top, right, bottom, score and class."""
    table = numpy_helper.from_array(torch.tensor([rows], dtype=torch.float32).numpy(), "rows")
    nodes = [
        helper.make_node("Shape", [INPUT], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "rest"], ["size"], axis=0),
        helper.make_node("Expand", ["rows", "size"], [DETECTIONS]),
    ]
    rest = numpy_helper.from_array(torch.tensor([len(rows), 6]).numpy(), "rest")
    shape = ("batch", 3, "height", "width")
    graph = helper.make_graph(
        nodes,
        "suppressed",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(DETECTIONS, TensorProto.FLOAT, None)],
        [table, rest],
    )
    return save_onnx(path, graph, document(outputs="nms", suppression={"conf": 0.25, "iou": 0.5, "max_det": 300}))


def save_onnx(path: Path, graph: Any, text: str | None = None, opset: int = 18) -> Path:
    """A graph as a file, with `text` as its metadata."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    if text is not None:
        helper.set_model_props(model, {KEY: text})
    onnx.save(model, path)
    return path


def write_ir(path: Path, text: str | None = None, **options: Any) -> Path:
    """The same as OpenVINO's IR."""
    import openvino

    model = openvino.Core().read_model(write_onnx(path.with_suffix(".source.onnx"), **options))
    if text is not None:
        model.set_rt_info(text, KEY)
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def write_pt2(path: Path, text: str | None = None) -> Path:
    """The same as a program of torch."""
    sides = {2: STRIDE * torch.export.Dim("height", min=1), 3: STRIDE * torch.export.Dim("width", min=1)}
    shapes = ({0: torch.export.Dim("batch"), **sides},)
    program = torch.export.export(Patches(), (torch.rand(2, 3, 320, 320),), dynamic_shapes=shapes)
    torch.export.save(program, path, extra_files=None if text is None else {KEY: text})
    return path


def write_torchscript(path: Path, text: str | None = None) -> Path:
    """The same as TorchScript."""
    network = torch.jit.trace(Patches(), torch.rand(2, 3, 64, 64))
    torch.jit.save(network, path, _extra_files=None if text is None else {KEY: text})
    return path


WRITERS: dict[str, Callable[..., Path]] = {
    ".onnx": write_onnx,
    ".xml": write_ir,
    ".pt2": write_pt2,
    ".torchscript": write_torchscript,
}
# for a test that is run with each; torch takes seconds to import what writes a .pt2
SUFFIXES = [".onnx", ".xml", ".torchscript", pytest.param(".pt2", marks=pytest.mark.slow)]


class Files(dict[str, Path]):
    """A file of each format by its suffix, written when it is first asked for; it takes images of any shape."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, suffix: str) -> Path:
        self[suffix] = WRITERS[suffix](self.folder / f"best{suffix}", document())
        return self[suffix]
