"""ONNX files, computed by ONNX Runtime."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yoloyard.common.errors import UserError
from yoloyard.runtimes.exported import Program, device_for
from yoloyard.runtimes.extras import needed

TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
ERRORS_ALONE = 3  # of what ONNX Runtime logs


def open_onnx(path: Path, device: str, document: Any) -> Program:
    """The program of an ONNX file, with as many threads as torch has now.

    Raises UserError if ONNX Runtime is not installed or can't use the device, and ONNX Runtime's errors.
    """
    onnxruntime = needed("onnxruntime", "onnx")
    kinds = [kind for kind, provider in PROVIDERS.items() if provider in onnxruntime.get_available_providers()]
    chosen = device_for(path, device, kinds, "NVIDIA's GPUs want onnxruntime-gpu in place of onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = ERRORS_ALONE
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait cost others their time
    where = {"device_id": chosen.index} if chosen.type == "cuda" else {}
    session = onnxruntime.InferenceSession(path, options, providers=[(PROVIDERS[chosen.type], where)])
    if session.get_providers()[0] != PROVIDERS[chosen.type]:  # it falls back to the CPU by itself
        raise UserError(f"ONNX Runtime can't compute on {chosen} here: say --device cpu, or see what it lacks")
    inputs, names = session.get_inputs(), [each.name for each in session.get_outputs()]

    def compute(images: Tensor) -> list[Tensor]:
        array = images.to("cpu", TYPES[inputs[0].type]).contiguous().numpy()
        return [torch.from_numpy(output).to(chosen) for output in session.run(names, {inputs[0].name: array})]

    # A name such as "64" is a size that torch has fixed while it exported.
    shapes = [[int(side) if str(side).isdecimal() else None for side in each.shape] for each in inputs]
    return Program(shapes, names, compute, chosen)
