"""8-bit weights and activations, by ONNX Runtime's quantiser and by nncf for OpenVINO.

What comes after the last convolutions decodes boxes and scores: numbers of pixels and of small probabilities in one
tensor, which 256 steps can't hold. So every node from which no convolution is reached stays in float. That is found in
the graph, since names differ between families, custom models and releases of torch.
"""

import ast
import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from yoloyard.common.errors import UsageError
from yoloyard.common.files import write_whole
from yoloyard.config.overrides import unknown_name
from yoloyard.export import onnx_file
from yoloyard.export.calibration import CalibrationImages, calibration_images
from yoloyard.export.job import Job
from yoloyard.runtimes.extras import needed
from yoloyard.runtimes.metadata import INPUT, KEY

log = logging.getLogger(__name__)

# ONNX's names and OpenVINO's
CONVOLUTIONS = {"Conv", "ConvTranspose"} | {
    f"{kind}{suffix}" for kind in ("Convolution", "GroupConvolution") for suffix in ("", "BackpropData")
}
SYMMETRIC = ".tensorrt.onnx"  # suffix of the file for TensorRT
# NVIDIA, "Explicit Quantization": zero points are 0; inputs of convolutions are quantised, outputs and biases are not.
TENSORRT = {
    "ActivationSymmetric": True,
    "AddQDQPairToWeight": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": ["Conv", "ConvTranspose"],
}
SCOPES = "pkg.torch.onnx.name_scopes"  # where torch's exporter notes the modules that a node lies in


class Node(NamedTuple):
    """An operation of a graph, whatever its format. `inputs` and `outputs` are names of tensors."""

    name: str
    kind: str
    inputs: Sequence[str]
    outputs: Sequence[str]


def beyond_convolutions(nodes: Sequence[Node]) -> list[str]:
    """Names of the nodes from which no convolution is reached; `nodes` come in the order of computing."""
    wanted: set[str] = set()  # tensors that a convolution needs, directly or not
    beyond = []
    for node in reversed(nodes):
        if node.kind in CONVOLUTIONS or not wanted.isdisjoint(node.outputs):
            wanted.update(node.inputs)
        else:
            beyond.append(node.name)
    return beyond


def kept_nodes(model: Any, keep_float: str | None) -> set[str]:
    """Names of the nodes of an ONNX model that `--keep-float` names: nodes, or parts of the network with all in them.

    A part has the name that the weights file uses, such as `head.class_branches.0`. Raises UsageError for a name that
    is in neither.
    """
    known: dict[str, set[str]] = {}
    for node in model.graph.node:
        scopes = next((each.value for each in node.metadata_props if each.key == SCOPES), "[]")
        # The last scope is the operation; the first part of the others holds the detector while it is traced. A list of
        # modules is no scope of its own.
        parts = [scope.split(".")[1:] for scope in ast.literal_eval(scopes)[:-1]]
        prefixes = {".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}
        for name in {node.name, *prefixes} - {""}:
            known.setdefault(name, set()).add(node.name)
    kept: set[str] = set()
    for name in filter(None, map(str.strip, (keep_float or "").split(","))):
        if name not in known:
            raise UsageError(f"--keep-float: {unknown_name(name, known, 'part of the network')}")
        kept |= known[name]
    return kept


@contextlib.contextmanager
def float_onnx(job: Job) -> Iterator[Path]:
    """The ONNX file of a job in float32: the one that it has written, or one that is removed after the context."""
    path = job.path(".onnx")
    if path.exists():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield onnx_file.write(replace(job, config=replace(job.config, half=False), folder=Path(folder)))


def write_onnx(job: Job, symmetric: bool = False) -> Path:
    """Write a job's ONNX file in 8 bits, if it isn't there yet: `best.int8.onnx`, for TensorRT (`symmetric`) its own.

    Raises what `onnx_file.write`, `calibration_images` and `quantise_onnx` raise.
    """
    out = job.path(SYMMETRIC if symmetric else ".onnx", "int8")
    if out.exists():  # written for another target
        return out
    images = calibration_images(job)
    with float_onnx(job) as float_file:
        quantise_onnx(float_file, out, job, images, symmetric)
    return out


def quantise_onnx(float_file: Path, out: Path, job: Job, images: CalibrationImages, symmetric: bool = False) -> None:
    """Write `float_file` to `out` in 8 bits as QDQ nodes, with the metadata of `job` for int8.

    `symmetric`: as TensorRT wants it, see TENSORRT; slower than float32 in ONNX Runtime.
    Raises UsageError for an unknown name in `--keep-float`, UserError for an image that can't be read.
    """
    onnx = needed("onnx", "onnx")
    quantization = needed("onnxruntime.quantization", "onnx")
    shape_inference = needed("onnxruntime.quantization.shape_inference", "onnx")
    model = onnx.load(float_file)
    nodes = [Node(each.name, each.op_type, each.input, each.output) for each in model.graph.node]
    # ONNX Runtime gives its output steps of 1/255 whatever it holds: the share of one cell among 1,600 would become 0
    shares = [node.name for node in nodes if node.kind == "Softmax"]
    excluded = sorted({*beyond_convolutions(nodes), *shares, *kept_nodes(model, job.config.keep_float)})
    signed, unsigned = quantization.QuantType.QInt8, quantization.QuantType.QUInt8
    kinds = ["Conv", "ConvTranspose"] if symmetric else None  # None: all that ONNX Runtime computes in 8 bits
    feeds = ({INPUT: image} for image in images)
    with tempfile.TemporaryDirectory() as folder, _quiet_output():
        prepared, quantised = Path(folder, "prepared.onnx"), Path(folder, "quantised.onnx")
        # its shapes of torch are kept, and its nodes keep their names without the optimization
        shape_inference.quant_pre_process(float_file, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            quantised,
            SimpleNamespace(get_next=lambda: next(feeds, None)),
            per_channel=True,
            activation_type=signed if symmetric else unsigned,
            weight_type=signed,
            nodes_to_exclude=excluded,
            calibration_providers=["CPUExecutionProvider"],
            op_types_to_quantize=kinds,
            extra_options=TENSORRT if symmetric else {},
        )
        model = onnx.load(quantised)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {KEY: job.document("int8", opset=onnx_file.OPSET)})
    onnx.checker.check_model(model, full_check=True)
    write_whole(out, lambda temporary: temporary.write_bytes(model.SerializeToString()))


def quantise_openvino(model: Any, float_file: Path, job: Job, images: CalibrationImages) -> Any:
    """An OpenVINO model in 8 bits by nncf; `model` was made from the ONNX file `float_file` and may be changed.

    Raises UsageError for an unknown name in `--keep-float`, UserError for an image that can't be read.
    """
    onnx = needed("onnx", "onnx")
    with contextlib.redirect_stdout(io.StringIO()):  # which its logger takes as it is loaded
        nncf = needed("nncf", "openvino")
    kept = kept_nodes(onnx.load(float_file), job.config.keep_float)
    operations = [each for each in model.get_ordered_ops() if each.get_type_name() not in ("Constant", "Result")]
    nodes = [
        Node(
            each.get_friendly_name(),
            each.get_type_name(),
            [source.get_source_output().get_node().get_friendly_name() for source in each.inputs()],
            [each.get_friendly_name()],
        )
        for each in operations
    ]
    # what an ONNX node becomes has its name, with more after a slash where it becomes several
    ignored = {*beyond_convolutions(nodes), *(node.name for node in nodes if node.name.partition("/")[0] in kept)}
    with _quiet_output():
        return nncf.quantize(
            model,
            nncf.Dataset(images),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=sorted(ignored), validate=False),
        )


@contextlib.contextmanager
def _quiet_output() -> Iterator[None]:
    """While entered, progress and notes of the quantisers are not shown; what they warn of is, and errors."""
    loggers = [logging.getLogger(name) for name in ("nncf", "onnxruntime")]
    before = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.WARNING)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)
