"""Facts about the machine and the packages of a run, written beside its results."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

PACKAGES = ("yoloyard", "torch", "numpy", "opencv-python-headless", "safetensors", "faster-coco-eval")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def facts(device: Any, precision: str) -> dict[str, Any]:
    """What a run needs to say about where it ran. `device` is a torch.device."""
    import torch

    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "command": sys.argv,
        "versions": versions(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "accelerator": accelerator,
        "cuda": torch.version.cuda,
        "precision": precision,
    }
