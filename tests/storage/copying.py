"""A run folder of a few small files, and its copies."""

from pathlib import Path
from typing import Any

from object_store import BUCKET
from yoloyard.storage.copies import Copies, Manifest, facts_of

S3 = f"s3://{BUCKET}/team/run"
Files = dict[str, Any]
NO_COPY = (False, 3)


def files_of(folder: Path, **contents: bytes) -> Files:
    """Write files into `folder`, by names with _ for / in the checkpoint; what `send` wants of them."""
    facts = {}
    for name, content in contents.items():
        path = folder / ("weights/best.safetensors" if name == "best" else f"checkpoints/last/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        facts[path.relative_to(folder).as_posix()] = facts_of(path)
    return facts


def claimed(address: str, run: str = "run-1") -> Copies:
    copies = Copies(address, create=True)
    copies.claim(run, "line")
    return copies


def send(
    copies: Copies, folder: Path, files: dict[str, Any], epoch: int = 0, keeps: tuple[bool, int] = NO_COPY
) -> None:
    """Send these files as the checkpoint of an epoch, by default the next; `keeps`: is it kept, how many are."""
    epoch = epoch or 1 + max((each.epoch for each in copies.manifests), default=0)
    copies.send(folder, Manifest(epoch, 0, keeps[0], files), keeps[1], lambda size: None)
