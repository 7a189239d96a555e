"""What the NVIDIA driver says of itself and its GPUs, through NVML; a machine without NVML is a fact, not an error."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

UNKNOWN_ERROR = 999  # NVML_ERROR_UNKNOWN; what a container hears that may no longer open its devices
DRIVER_NOT_LOADED = 9
LIBRARY_MISMATCH = 18  # the library was updated, the kernel module was not
LIBRARY_NOT_FOUND = 12


def gather() -> dict[str, Any]:
    """Driver, the CUDA version it serves, and its GPUs.

    `error` is {"code", "text"} where NVML can't be asked, else None; a GPU that does not answer has an `error` too.
    Memory is in bytes. A value that this GPU or driver does not know is None.
    """
    found: dict[str, Any] = {"error": None, "driver": None, "cuda": None, "gpus": []}
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError as error:
        return found | {"error": {"code": None, "text": f"the package nvidia-ml-py can't be imported: {error}"}}
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return found | {"error": _error(error)}
    try:
        found["driver"] = nvml.nvmlSystemGetDriverVersion()
        served = _ask(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
        found["cuda"] = served and f"{served // 1000}.{served % 1000 // 10}"
        found["gpus"] = [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        found["error"] = _error(error)
    finally:
        _ask(nvml, nvml.nvmlShutdown)
    return found


def _gpu(nvml: Any, index: int) -> dict[str, Any]:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError_NotSupported:
        memory = None  # a GPU that shares the memory of the machine
    except nvml.NVMLError as error:
        return {"index": index, "error": _error(error)}
    capability = _ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    processes = _ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
    mig = _ask(nvml, nvml.nvmlDeviceGetMigMode, handle)
    return {
        "index": index,
        "error": None,
        "name": _ask(nvml, nvml.nvmlDeviceGetName, handle),
        "uuid": _ask(nvml, nvml.nvmlDeviceGetUUID, handle),
        "capability": capability and f"{capability[0]}.{capability[1]}",
        "memory_total": memory and memory.total,
        "memory_used": memory and memory.used,
        "processes": [{"pid": each.pid, "memory": each.usedGpuMemory} for each in processes],
        "uncorrected_memory_errors": _ask(
            nvml,
            nvml.nvmlDeviceGetTotalEccErrors,
            handle,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        ),
        "throttled_by": _throttled_by(_ask(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0),
        "compute_mode": {0: "default", 2: "prohibited", 3: "exclusive"}.get(
            _ask(nvml, nvml.nvmlDeviceGetComputeMode, handle) or 0
        ),
        "mig": bool(mig and mig[0]),
        "mig_instances": _mig_instances(nvml, handle) if mig and mig[0] else 0,
    }


def _throttled_by(reasons: int) -> list[str]:
    """The reasons that mean trouble; idle clocks, power caps and settings of the user's are none."""
    names = {0x08: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake"}
    return [name for bit, name in names.items() if reasons & bit]


def _mig_instances(nvml: Any, handle: Any) -> int:
    most = _ask(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
    return sum(_ask(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, each) is not None for each in range(most))


def _ask(nvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where this GPU or driver doesn't know it."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def _error(error: Any) -> dict[str, Any]:
    return {"code": error.value, "text": str(error)}
