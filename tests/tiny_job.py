"""An export of the tiny network with weights that find boxes, as a job for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from commands import TINY_NETWORK
from tiny_network import Tiny
from yoloyard.config.settings import ExportConfig
from yoloyard.demo.drawing import NAMES
from yoloyard.demo.write import demo_image
from yoloyard.export.job import Job
from yoloyard.runtimes.metadata import FileFacts

__all__ = ["NAMES", "SHOWN", "tiny_job"]

SHOWN = {"conf": 0.3, "iou": 0.45}


def tiny_job(folder: Path, outputs: str = "boxes", shape: tuple[int, int] | None = (96, 96), **config: Any) -> Job:
    """A job whose network, of random weights, gives scores from 0 to 1 that depend on the image."""
    torch.manual_seed(4)
    detector = Tiny(len(NAMES))
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics are those of the one batch
    drawings = np.stack([demo_image(0, "val", number, 96).pixels for number in range(4)])
    with torch.no_grad():
        for name, values in detector.head.named_parameters():
            if name.endswith(".2.weight"):
                values.mul_(20 if name.startswith("box") else 8)
            elif name.startswith("class") and name.endswith(".2.bias"):
                values.fill_(-4.0)
        detector(torch.from_numpy(drawings).permute(0, 3, 1, 2) / 255)
    detector.eval()
    suppression = {**SHOWN, "max_det": 20} if outputs == "nms" else None
    metadata = {
        "model": TINY_NETWORK,
        "names": list(NAMES),
        "imgsz": 96,
        "showing": SHOWN,
        "evaluation": {"conf": 0.001, "iou": 0.7, "max_det": 300},
        "licence": "Apache-2.0",
    }
    facts = FileFacts(outputs, NAMES, detector.strides, shape, None, "float32", "0" * 64, "0.1.0", 18, suppression)
    folder.mkdir(parents=True, exist_ok=True)
    settings = ExportConfig(weights="best.safetensors", outputs=outputs, dynamic=shape is None, **config)
    return Job(settings, Path("best.safetensors"), detector, metadata, facts, folder)
