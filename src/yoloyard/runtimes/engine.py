"""Where a TensorRT engine runs: with the TensorRT, GPU and driver that its sidecar names. None is computed here."""

import importlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any, NoReturn

import torch

from yoloyard.common.errors import UserError

SUFFIX, SIDECAR = ".engine", ".engine.json"
PLACE = "TensorRT {tensorrt}, {gpu} of compute capability {compute_capability}, driver {driver}"
BUILD = "build it where it runs: yoloyard export WEIGHTS --to tensorrt"


def facts_here() -> dict[str, Any] | None:
    """What PLACE names, of this machine; None without the package `tensorrt` or without a GPU that torch can use."""
    spec = importlib.util.find_spec("tensorrt")
    if spec is None or spec.origin is None or not torch.cuda.is_available():  # a folder of this name is no package
        return None
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
        driver = nvml.nvmlSystemGetDriverVersion()
    except nvml.NVMLError:  # a Jetson may have none; its driver comes with its JetPack
        driver = None
    return {
        "tensorrt": importlib.import_module("tensorrt").__version__,
        "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability(0)),
        "gpu": torch.cuda.get_device_name(0),
        "driver": driver,
    }


def refuse_engine(engine: Path) -> NoReturn:
    """Raise UserError: why `engine` can't run on this machine, or that yoloyard itself runs no engines.

    It is stricter than TensorRT, which warns where only the name of the GPU differs, and runs with some older drivers.
    Source: NVIDIA's documentation of TensorRT, "Engine Compatibility".
    """
    path, here = engine.with_suffix(SIDECAR), facts_here()
    try:
        built = json.loads(path.read_bytes())
        where = PLACE.format(**built)
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UserError(f"{path} can't be read, so nothing says where {engine} runs ({error}); {BUILD}") from error
    older = here and here["driver"] and _numbers(here["driver"]) < _numbers(built["driver"])
    if here is None or older or any(built[key] != here[key] for key in ("tensorrt", "compute_capability", "gpu")):
        found = PLACE.format(**here) if here else "no TensorRT, or no GPU that torch can use"
        raise UserError(f"{engine} was built for {where}; here is {found}: take the .onnx, or {BUILD}")
    raise UserError(f"{engine} fits this machine, but yoloyard runs no engines: use TensorRT or Triton, or the .onnx")


def _numbers(version: Any) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(version))]
