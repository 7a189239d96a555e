"""Where a TensorRT engine runs: with the TensorRT, GPU and driver that its sidecar names. None is computed here."""

import importlib
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from yoloyard.common.errors import UserError

SUFFIX, SIDECAR = ".engine", ".engine.json"
NAMES = {"tensorrt": "TensorRT", "compute_capability": "compute capability", "gpu": "the GPU"}  # keys of a sidecar
BUILD = "build it where it runs: yoloyard export WEIGHTS --to tensorrt"


def facts_here() -> dict[str, Any] | None:
    """NAMES and `driver` of this machine; None without the package `tensorrt` or without a GPU that torch can use."""
    spec = importlib.util.find_spec("tensorrt")
    if spec is None or spec.origin is None or not torch.cuda.is_available():  # a folder of this name is no package
        return None
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
        driver = nvml.nvmlSystemGetDriverVersion()
    except nvml.NVMLError:  # a Jetson may have none; its driver comes with its JetPack
        driver = None
    version = importlib.import_module("tensorrt").__version__
    capability = "{}.{}".format(*torch.cuda.get_device_capability(0))
    values = (version, capability, torch.cuda.get_device_name(0), driver)
    return dict(zip((*NAMES, "driver"), values, strict=True))


def check_engine(sidecar: Mapping[str, Any], here: Mapping[str, Any] | None) -> None:
    """Raise UserError if an engine with this sidecar can't run where `here` are the facts (None: no TensorRT or GPU).

    It is stricter than TensorRT, which warns where only the name of the GPU differs, and runs with some older drivers.
    Source: NVIDIA's documentation of TensorRT, "Engine Compatibility".
    """
    if here is None:
        where = f"{sidecar['gpu']} with TensorRT {sidecar['tensorrt']}"
        raise UserError(f"it was built for {where}; here is no TensorRT, or no GPU that torch can use: take the .onnx")
    for key, name in NAMES.items():
        if sidecar[key] != here[key]:
            raise UserError(f"it needs {name} {sidecar[key]}, and here is {here[key]}; {BUILD}")
    built, found = ([int(n) for n in re.findall(r"\d+", facts.get("driver") or "")] for facts in (sidecar, here))
    if found and found < built:
        raise UserError(f"it needs driver {sidecar['driver']}, and here is {here['driver']}; update it, or {BUILD}")


def refuse_engine(engine: Path) -> NoReturn:
    """Raise UserError: why `engine` can't run on this machine, or that yoloyard itself runs no engines."""
    path = engine.with_suffix(SIDECAR)
    try:
        sidecar = json.loads(path.read_bytes())
        check_engine({**dict.fromkeys(NAMES, "unknown"), **sidecar}, facts_here())
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} can't be read, so nothing says where {engine} runs ({error}); {BUILD}") from error
    except UserError as error:
        raise UserError(f"{engine}: {error}") from error
    raise UserError(f"{engine} fits this machine, but yoloyard runs no engines: use TensorRT or Triton, or the .onnx")
