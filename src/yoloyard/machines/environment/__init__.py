"""Facts about the machine, the packages and the code of a run, written beside its results. No secrets among them."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yoloyard.common.versions import versions
from yoloyard.machines.environment import machine, nvml
from yoloyard.machines.environment.code import git_state
from yoloyard.machines.environment.inventory import freeze
from yoloyard.machines.environment.secrets import command_without_secrets, variables


def facts(device: Any, precision: str, data: Mapping[str, Any] | None = None, folder: Path = Path(".")) -> dict:
    """What a run needs to say about where it ran, in JSON's types.

    Args:
        device: a torch.device
        precision: the name of its arithmetic
        data: what the splits hold (`Index.facts`), by their names
        folder: of the run, for the free space of its disk
    """
    import torch

    is_cuda = bool(torch.version.cuda)
    has_nccl = is_cuda and torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return {
        "command": command_without_secrets(sys.argv),
        "versions": {**versions(), "torch": str(torch.__version__)},
        "system": platform.platform(),
        "host": platform.node(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        # Only a GPU uses it, and asking loads 55 MB of it.
        "cudnn": torch.backends.cudnn.version() if is_cuda and device.type == "cuda" else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None,
        "precision": precision,
        "image": os.environ.get("YOLOYARD_TAG"),  # set in our images
        "variables": variables(),
        "git": git_state(Path.cwd()),
        "data": dict(data or {}),
        "packages": freeze(),
        "machine": machine.gather(Path("/"), folder),
        "nvml": nvml.gather(),
    }
