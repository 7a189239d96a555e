"""ONNX: one file with the weights inside, of an operator set that all its runtimes know."""

import importlib
from pathlib import Path
from typing import Any

import torch

from yoloyard.common.files import write_whole
from yoloyard.export.graph import explained, quiet_torch
from yoloyard.export.job import Job
from yoloyard.runtimes.extras import needed
from yoloyard.runtimes.metadata import INPUT, KEY

OPSET = 18
STACK_TRACE = "pkg.torch.onnx.stack_trace"
AXES = {0: "batch", 2: "height", 3: "width"}  # of the input


def write(job: Job) -> Path:
    """Write the float file of a job, if it isn't there yet, and check it. Raises UserError as `traced` does."""
    path = job.path(".onnx", job.precision)
    if path.exists():  # written for another target
        return path
    onnx = needed("onnx", "onnx")
    needed("onnxscript", "onnx")
    program = job.program
    with quiet_torch(), explained(job, "torch can't write this network as ONNX"):
        exported = torch.onnx.export(
            program,
            (),
            input_names=[INPUT],
            output_names=job.facts.output_names,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
            custom_translation_table={torch.ops.yoloyard.suppress.default: _suppress},
        )
    assert exported is not None
    model = exported.model_proto
    _clean(model)
    onnx.helper.set_model_props(model, {KEY: job.document(job.precision, opset=OPSET)})
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    write_whole(path, lambda temporary: temporary.write_bytes(content))
    return path


def _suppress(boxes: Any, class_scores: Any, conf: float, iou: float, max_det: int) -> Any:
    """`yoloyard::suppress` in operators of ONNX."""
    op = importlib.import_module("onnxscript").opset18
    limits = (op.Constant(value_ints=[max_det]), op.Constant(value_floats=[iou]), op.Constant(value_floats=[conf]))
    kept = op.NonMaxSuppression(boxes, class_scores, *limits)  # rows of image, class, point
    places = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)
    best = op.ReduceMax(class_scores, op.Constant(value_ints=[1]), keepdims=0)
    return op.ScatterND(op.Mul(best, op.Constant(value_float=0.0)), places, op.GatherND(class_scores, kept))


def _clean(model: Any) -> None:
    """Remove what torch notes of its source, with folders of this machine, and name the axes of the input."""
    graph = model.graph
    for node in graph.node:
        kept = [each for each in node.metadata_props if each.key != STACK_TRACE]
        node.ClearField("metadata_props")
        node.metadata_props.extend(kept)
    dims = graph.input[0].type.tensor_type.shape.dim
    names = {dims[axis].dim_param: name for axis, name in AXES.items() if dims[axis].dim_param}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
