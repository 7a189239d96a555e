"""The tiny network with branches that need suppression and branches that don't, as a weights file."""

import hashlib
from pathlib import Path

import torch

from commands import TINY_NETWORK
from tiny_job import NAMES, tiny_job
from yoloyard.models.heads import EndToEndHead
from yoloyard.models.weights import save_weights


def write_two_paths(folder: Path) -> Path:
    """`two.safetensors`, for 96 pixels, beside its user file; the one-to-one branches are its default."""
    job = tiny_job(folder)
    head = EndToEndHead((8, 8), len(NAMES), (8, 32), depthwise=False, class_width=8)
    own = job.detector.head.state_dict()
    head.load_state_dict(own | {f"one_to_one_{name}": value for name, value in own.items() if "branches" in name})
    with torch.no_grad():
        for boxes, classes in zip(head.one_to_one_box_branches, head.one_to_one_class_branches, strict=True):
            boxes[2].bias += torch.rand_like(boxes[2].bias)  # type: ignore[index]
            classes[2].bias += 1  # type: ignore[index]
    job.detector.head = head
    source = Path(TINY_NETWORK.removesuffix(":Tiny")).read_text().replace("AnchorFreeHead", "EndToEndHead")
    (folder / "two_paths_network.py").write_text(source)
    metadata = {
        "model": "two_paths_network.py:Tiny",
        "model_digest": hashlib.sha256(source.encode()).hexdigest(),
        "model_arguments": {"num_classes": len(NAMES)},
        "evaluation": {**job.metadata["evaluation"], "suppression": "off"},
    }
    path = folder / "two.safetensors"
    save_weights(path, job.detector.state_dict(), {**job.metadata, **metadata})
    return path
