"""For TensorRT: a folder with the ONNX file and the commands that build an engine; the engine itself where it can be.

Its precision lies in the ONNX file (float32, float16, or int8 as QDQ nodes): engines are strongly typed, as TensorRT 11
has it and 10 can. It follows NVIDIA's documentation of 10.3 and 11.4; no test ran a TensorRT.
"""

import importlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yoloyard.common.digests import file_sha256
from yoloyard.common.errors import UserError
from yoloyard.common.files import link_or_copy, write_whole, write_whole_folder, write_whole_text
from yoloyard.common.image_size import shape_of
from yoloyard.export.job import Job
from yoloyard.runtimes.engine import SIDECAR, SUFFIX, facts_here
from yoloyard.runtimes.metadata import INPUT

log = logging.getLogger(__name__)

MAX_BATCH = 8
USUAL_BATCH = 1  # what the engine is tuned for: a line's camera gives one image at a time
README = """\
# {onnx} for TensorRT

An engine runs only with the TensorRT, the kind of GPU and a driver not older than those that built it: build it where
it runs, in this folder. Its precision lies in the ONNX file, so there is no `--fp16` and no `--int8`.

TensorRT 10 (JetPack 6 has it, with trtexec in /usr/src/tensorrt/bin):

    trtexec --stronglyTyped --onnx={onnx} --saveEngine={engine} {shapes}

TensorRT 11 (not for JetPack 6):

    trtexec --onnx={onnx} --saveEngine={engine} {shapes}

These commands follow NVIDIA's documentation of 10.3 and 11.4; no test ran them.
"""


def write(job: Job, onnx_file: Path) -> Path:
    """Write the folder `best.tensorrt`: the ONNX file, README.md, and where TensorRT is, engine and sidecar.

    Returns the folder. Raises UserError where TensorRT refuses the file.
    """
    precision = "int8" if job.config.int8 else job.precision
    folder, engine = job.path(".tensorrt", precision), job.path(SUFFIX, precision).name
    least, most = (job.facts.shape or shape_of(size) for size in (max(job.facts.strides), job.imgsz))
    # by trtexec's names: the smallest, the usual and the largest batch
    batches = {"min": (1, least), "opt": (USUAL_BATCH, most), "max": (MAX_BATCH, most)}
    profile = {name: (images, job.detector.image_channels, *size) for name, (images, size) in batches.items()}
    flags = " ".join(f"--{key}Shapes={INPUT}:{'x'.join(map(str, sizes))}" for key, sizes in profile.items())

    def fill(path: Path) -> None:
        link_or_copy(onnx_file, path / onnx_file.name)
        text = README.format(onnx=onnx_file.name, engine=engine, shapes=flags)
        (path / "README.md").write_text(text, encoding="utf-8")

    write_whole_folder(folder, fill)
    if (here := facts_here()) is None:
        log.info(f"no TensorRT with a GPU here: {folder / 'README.md'} has the command that builds the engine")
        return folder
    content = build(onnx_file, profile)
    write_whole(folder / engine, lambda path: path.write_bytes(content))
    document = json.loads(job.document(precision, max_batch=MAX_BATCH))
    sidecar = {**here, "onnx_sha256": file_sha256(onnx_file), "shapes": profile, "document": document}
    write_whole_text((folder / engine).with_suffix(SIDECAR), json.dumps(sidecar, indent=2) + "\n")
    return folder


def build(onnx_file: Path, profile: Mapping[str, tuple[int, ...]]) -> bytes:
    """An engine of this machine's TensorRT (10 or 11) and first GPU. Raises UserError with what TensorRT says."""
    tensorrt: Any = importlib.import_module("tensorrt")
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    is_always_typed = int(tensorrt.__version__.split(".")[0]) >= 11
    flags = 0 if is_always_typed else 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(onnx_file.read_bytes()):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise UserError(f"TensorRT {tensorrt.__version__} can't read {onnx_file}: {' '.join(reasons.split())}")
    config, batches = builder.create_builder_config(), builder.create_optimization_profile()
    batches.set_shape(INPUT, profile["min"], profile["opt"], profile["max"])
    config.add_optimization_profile(batches)
    if (engine := builder.build_serialized_network(network, config)) is None:
        raise UserError(f"TensorRT {tensorrt.__version__} could not build an engine of {onnx_file}; its log says why")
    return bytes(engine)
