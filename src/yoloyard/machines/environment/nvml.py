"""What the NVIDIA driver says of itself and its GPUs, through NVML. A machine without NVML is a fact, not an error."""

import importlib
from typing import Any

UNKNOWN_ERROR = 999  # NVML_ERROR_UNKNOWN: the answer in a container that may no longer open its devices
DRIVER_NOT_LOADED = 9
LIBRARY_MISMATCH = 18  # the library was updated, the kernel module was not
LIBRARY_NOT_FOUND = 12
# Why clocks are low, where that means trouble; idle clocks, power caps and the user's own settings mean none.
TROUBLE = {0x08: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake"}


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
        found["driver"] = nvml.nvmlSystemGetDriverVersion()
        served = _ask(nvml, "nvmlSystemGetCudaDriverVersion_v2")
        found["cuda"] = served and f"{served // 1000}.{served % 1000 // 10}"
        found["gpus"] = [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        found["error"] = {"code": error.value, "text": str(error)}
    finally:
        _ask(nvml, "nvmlShutdown")
    return found


def _gpu(nvml: Any, index: int) -> dict[str, Any]:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError_NotSupported:
        memory = None  # a GPU that shares the memory of the machine
    except nvml.NVMLError as error:
        return {"index": index, "error": {"code": error.value, "text": str(error)}}

    def ask(name: str, *arguments: Any) -> Any:
        return _ask(nvml, f"nvmlDeviceGet{name}", handle, *arguments)

    capability, mig = ask("CudaComputeCapability"), ask("MigMode")
    kinds = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
    reasons = ask("CurrentClocksThrottleReasons") or 0
    slots = range(ask("MaxMigDeviceCount") or 0) if mig and mig[0] else ()
    return {
        "index": index,
        "error": None,
        "name": ask("Name"),
        "uuid": ask("UUID"),
        "capability": capability and f"{capability[0]}.{capability[1]}",
        "memory_total": memory and memory.total,
        "memory_used": memory and memory.used,
        "processes": [{"pid": each.pid, "memory": each.usedGpuMemory} for each in ask("ComputeRunningProcesses") or []],
        "uncorrected_memory_errors": ask("TotalEccErrors", *kinds),
        "throttled_by": [name for bit, name in TROUBLE.items() if reasons & bit],
        "compute_mode": {0: "default", 2: "prohibited", 3: "exclusive"}.get(ask("ComputeMode") or 0),
        "mig": bool(mig and mig[0]),
        "mig_instances": sum(ask("MigDeviceHandleByIndex", slot) is not None for slot in slots),
    }


def _ask(nvml: Any, name: str, *arguments: Any) -> Any:
    """The answer of this function of NVML, or None where the GPU or driver doesn't know it."""
    try:
        return getattr(nvml, name)(*arguments)
    except nvml.NVMLError:
        return None
