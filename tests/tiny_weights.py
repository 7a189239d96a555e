"""The network of `tiny_job` as a weights file, beside the user file that it belongs to."""

import hashlib
from pathlib import Path

from commands import TINY_NETWORK
from tiny_job import tiny_job
from yoloyard.models.weights import save_weights


def write_tiny_weights(folder: Path, replace: str = "", by: str = "") -> Path:
    """`tiny.safetensors` in `folder`, for 96 pixels, beside `tiny_network.py`, where `replace` is replaced."""
    job = tiny_job(folder)
    source = Path(TINY_NETWORK.removesuffix(":Tiny")).read_text().replace(replace or "\0", by)
    (folder / "tiny_network.py").write_text(source)
    own = {
        "model": "tiny_network.py:Tiny",
        "model_digest": hashlib.sha256(source.encode()).hexdigest(),
        "model_arguments": {"num_classes": job.detector.num_classes},
    }
    path = folder / "tiny.safetensors"
    save_weights(path, job.detector.state_dict(), {**job.metadata, **own})
    return path
