"""From a file to the runtime that computes it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from yoloyard.common.device import choose_device, choose_precision
from yoloyard.common.errors import UsageError, UserError
from yoloyard.models.weights import load_model
from yoloyard.runtimes.document import read_document
from yoloyard.runtimes.engine import SUFFIX, refuse_engine
from yoloyard.runtimes.exported import Exported, Program, reason
from yoloyard.runtimes.network import Network
from yoloyard.runtimes.onnx_runtime import open_onnx
from yoloyard.runtimes.openvino_runtime import open_openvino
from yoloyard.runtimes.programs import open_pt2, open_torchscript
from yoloyard.runtimes.runtime import Runtime

# Suffix of an exported file: what opens it, given path, device as the user names it, and document.
FORMATS: dict[str, Callable[[Path, str, Any], Program]] = {
    ".onnx": open_onnx,
    ".xml": open_openvino,
    ".pt2": open_pt2,
    ".torchscript": open_torchscript,
}


def load_runtime(
    path: Path,
    device: str = "auto",
    amp: bool | None = None,
    names: Sequence[str] = (),
    suppression: str | None = None,
) -> Runtime:
    """The network that a weights file or an exported file holds, ready to compute.

    `amp`: mixed precision; None: as in training; an exported file has a precision of its own. `names`: the classes of a
    file that doesn't say them. `suppression`: "on" or "off", which branches compute; None: as the file says. Raises
    UsageError or UserError for a file or device that can't be used, and branches that the file doesn't have.
    """
    if path.suffix == SUFFIX:
        refuse_engine(path)
    if path.suffix.lower() in FORMATS:
        if amp:
            raise UsageError(f"--amp is for weights files: {path} is computed in the precision that it was exported in")
        return _load_exported(path, device, names, suppression)
    detector, metadata = load_model(path)
    if names and list(names) != metadata.get("names"):
        raise UsageError(f"{path} says its classes itself: leave out --names")
    chosen = choose_device(device)
    kept = metadata.get("evaluation", {})
    precision = choose_precision(chosen, kept.get("precision", "float32") != "float32" if amp is None else amp)
    detector.to(device=chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
    wanted = suppression or kept.get("suppression")
    try:
        return Network(detector, chosen, precision, metadata, None if wanted is None else wanted == "on")
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _load_exported(path: Path, device: str, names: Sequence[str], suppression: str | None) -> Exported:
    document = read_document(path)
    try:
        program = FORMATS[path.suffix.lower()](path, device, document)
    except UserError:
        raise
    except Exception as error:  # each library has classes of its own for what is damaged or too new
        raise UserError(f"{path} can't be loaded: {reason(error)}") from error
    network = Exported(path, program, document, names)
    own = "on" if network.suppression else "off"
    if suppression not in (None, own):
        another = f"export the weights again with --suppression {suppression}"
        raise UsageError(f"{path} is for --suppression {own} alone: leave it out, or {another}")
    return network
