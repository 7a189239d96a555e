"""OpenVINO's IR: a .xml file with its .bin beside it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yoloyard.common.errors import UserError
from yoloyard.runtimes.exported import Program, device_for
from yoloyard.runtimes.extras import needed
from yoloyard.runtimes.metadata import BOXES, DETECTIONS, SCORES

KNOWN = {BOXES, SCORES, DETECTIONS}  # an output may have several names, or none
TYPES = {"f32": torch.float32, "f16": torch.float16}


def open_openvino(path: Path, device: str, document: Any) -> Program:
    """The program of an IR on the CPU, in float32 where it isn't quantised, with as many threads as torch has now.

    Raises UserError if OpenVINO or the .bin is missing, and OpenVINO's errors.
    """
    openvino = needed("openvino", "openvino")
    chosen = device_for(path, device, ("cpu",), "leave out --device, or use an .onnx file")
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise UserError(f"{weights} is missing: an OpenVINO file needs its .bin beside it")
    # Left to itself OpenVINO takes bfloat16 where the CPU has it: other boxes than those that were validated.
    wanted = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    wanted["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    core = openvino.Core()
    network = core.compile_model(core.read_model(path, weights), "CPU", wanted)
    shapes = [[side.get_length() if side.is_static else None for side in each.partial_shape] for each in network.inputs]
    names = [min(each.get_names() & KNOWN or {str(number)}) for number, each in enumerate(network.outputs)]

    def compute(images: Tensor) -> list[Tensor]:
        found = network(images.to(TYPES[network.inputs[0].element_type.get_type_name()]).contiguous().numpy())
        return [torch.from_numpy(found[number]) for number in range(len(names))]

    return Program(shapes, names, compute, chosen)
