"""From a file to the runtime that computes it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from yoloyard.common.device import choose_device, choose_precision
from yoloyard.models.weights import load_model
from yoloyard.runtimes.network import Network
from yoloyard.runtimes.runtime import Runtime


def load_runtime(path: Path, device: str = "auto", amp: bool | None = None, names: Sequence[str] = ()) -> Runtime:
    """The network that a weights file or an exported file holds, ready to compute.

    `amp`: mixed precision; None: as in training. `names`: the classes of a file that doesn't say them. Raises
    UsageError or UserError for a file or device that can't be used.
    """
    detector, metadata = load_model(path)
    chosen = choose_device(device)
    kept = metadata.get("evaluation", {})
    precision = choose_precision(chosen, kept.get("precision", "float32") != "float32" if amp is None else amp)
    detector.to(device=chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Network(detector, chosen, precision, metadata)
