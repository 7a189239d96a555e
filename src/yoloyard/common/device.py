"""Where the work is done and in which precision: decided once, from the configuration and what the hardware has."""

import gc
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from yoloyard.common.errors import UsageError
from yoloyard.common.image_size import ImageSize, shape_of

CPU_PIXELS = 2 * 640**2  # of images that a network gets at once: more are no faster, on two cores, and need more memory
GPU_BYTES = 1024  # for a pixel of an image: the maps of the largest networks take 468 in float32
DEVICE_PATHS = ("auto", "accelerator")
PRECISIONS = (torch.bfloat16, torch.float16, torch.float32)  # what can do one can do those after it


@dataclass(frozen=True)
class Precision:
    """The type of the arithmetic: float32, bfloat16, or float16 with loss scaling.

    `device_path`: `auto`, or `accelerator` for what tests let a CPU do: it runs the code of a GPU, scaler included.
    """

    device_type: str
    dtype: torch.dtype
    device_path: str = "auto"

    @property
    def name(self) -> str:
        """`float32`, `bfloat16` or `float16`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def has_cpu_paths(self) -> bool:
        """May code choose what is quicker on a CPU alone, such as reading numbers, which costs nothing there?"""
        return self.device_type == "cpu" and self.device_path == "auto"

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the model runs."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device_type, self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss where gradients would underflow (float16); does nothing otherwise."""
        enabled = self.dtype == torch.float16 or (self.device_type == "cpu" and not self.has_cpu_paths)
        return torch.amp.GradScaler(self.device_type, enabled=enabled)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that a user means by auto, cpu, cuda, mps, 0, 1 ... Raises UsageError if it is not there.

    All but the CPU have an index. `local_rank`: which process of this machine is asking; each gets a GPU of its own, in
    the order of a list such as "0,1".
    """
    name = name.strip(" []()").lower()  # a list as Python and YAML write it
    names = name.split(",")
    if len(names) > 1:
        if local_rank >= len(names):
            raise UsageError(f"--device {name} names {len(names)} devices, but there are more processes than that")
        return choose_device(names[local_rank].strip())
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = "cpu" if accelerator is None else accelerator.type
    try:
        named = f"cuda:{int(name)}" if name.isdecimal() else name
        with warnings.catch_warnings(action="ignore"):  # torch knows kinds of which it warns
            device = torch.device(named)
        if device.index is not None and not named.endswith(f":{device.index}"):
            raise ValueError(f"torch takes {named} for {device}")
    except (RuntimeError, ValueError, OverflowError) as error:
        raise UsageError(f"unknown device '{name}': say auto, cpu, cuda, mps or the number of a GPU") from error
    if device.type == "cpu" and not device.index:
        return torch.device("cpu")  # cpu:0 is torch's other name of it
    if device.type in ("cpu", "meta"):
        raise UsageError(f"there is no device '{name}' to compute on: say auto, cpu, cuda, mps or the number of a GPU")
    if device.index is None:  # torch.distributed takes no device without one
        device = torch.device(device.type, local_rank)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    there = torch.accelerator.device_count() if accelerator is not None and accelerator.type == device.type else 0
    if device.index >= there:
        found = f"{there} of that kind" if there else f"only {accelerator or 'cpu'}"
        shown = device if local_rank else name
        raise UsageError(f"there is no device '{shown}' here ({found}); say --device auto or --device cpu")
    return device


def choose_devices(names: str) -> list[torch.device]:
    """The devices of a list such as "0,1" for one process. Raises UsageError if one is not there."""
    return [choose_device(names, number) for number in range(len(names.split(",")))]


def choose_precision(device: torch.device, amp: bool, device_path: str = "auto") -> Precision:
    """bfloat16 where the hardware has it, float16 on older GPUs, float32 elsewhere and where `amp` is off."""
    if device_path not in DEVICE_PATHS:
        raise UsageError(f"--device-path {device_path}: there are {' and '.join(DEVICE_PATHS)}")
    dtype = torch.float32
    if amp and device.type == "cuda":
        # Of this device, where torch's own question is of the current one. All that ROCm supports have it.
        native = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
        dtype = torch.bfloat16 if native else torch.float16
    elif amp and device.type == "cpu" and cpu_has_bfloat16():
        dtype = torch.bfloat16
    return Precision(device.type, dtype, device_path)


def precision_text(precision: Precision, device: torch.device) -> str:
    """The precision as a user is told it: from Ampere on torch's default for float32 convolutions is TF32."""
    has_tf32 = device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= 8
    # cuDNN has a switch of its own; torch 2.9 and later refuse to mix its two ways to ask
    if precision.dtype == torch.float32 and has_tf32 and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0":
        convolutions = getattr(torch.backends.cudnn, "conv", None)
        rounds = torch.backends.cudnn.allow_tf32 if convolutions is None else convolutions.fp32_precision == "tf32"
        return f"{precision.name} (convolutions in TF32)" if rounds else precision.name
    return precision.name


@contextmanager
def repeated_shapes(repeat: bool = True) -> Iterator[None]:
    """Inside, cuDNN tries its algorithms on the first batch of each shape and takes the fastest, if `repeat`.

    That pays where few shapes come often. It changes nothing on other devices, nor what a caller has set outside.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = repeat
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def same_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    """After it torch's random numbers, on the host and on `device`, are where they were before."""
    if device.type == "cpu":
        return torch.random.fork_rng([])  # torch 2.8 knows no devices of that type
    return torch.random.fork_rng([device], device_type=device.type)


def cpu_has_bfloat16() -> bool:
    """Does this processor multiply bfloat16 natively? Known on Linux; elsewhere the answer is no."""
    cpuinfo = Path("/proc/cpuinfo")
    words = cpuinfo.read_text().split() if cpuinfo.exists() else ()
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)


def free_bytes(device: torch.device) -> int | None:
    """Memory of the device that torch may still take; None for a CPU, and where torch can't tell.

    What torch has freed it keeps, and takes again.
    """
    if device.type in ("cuda", "xpu"):
        of_kind = torch.cuda if device.type == "cuda" else torch.xpu
        kept = of_kind.memory_reserved(device) - of_kind.memory_allocated(device)
        return of_kind.mem_get_info(device)[0] + kept
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return None


def release_memory(device: torch.device) -> None:
    """Give free what nothing refers to any more, and what torch keeps of the device's memory though it is free."""
    gc.collect()
    empty_cache = getattr(torch.get_device_module(device), "empty_cache", None)
    if empty_cache is not None:
        empty_cache()


def images_at_once(device: torch.device, imgsz: ImageSize) -> int | None:
    """How many images of size `imgsz` a network that predicts gets together; None: as many as there are.

    Few on a CPU, on a GPU what half of its free memory holds. An image's figures don't depend on it.
    """
    pixels = math.prod(shape_of(imgsz))
    if device.type == "cpu":
        return max(1, CPU_PIXELS // pixels)
    free = free_bytes(device)
    return None if free is None else max(1, free // (2 * GPU_BYTES * pixels))
