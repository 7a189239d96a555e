"""A run folder of a few small files, and its copies."""

from pathlib import Path
from typing import Any

from object_store import BUCKET
from yoloyard.storage.copies import Copies, facts_of

S3 = f"s3://{BUCKET}/team/run"
NO_COPY = (False, 3)


def files_of(folder: Path, **contents: bytes) -> dict[str, Any]:
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


def send(copies: Copies, folder: Path, files: dict[str, Any], epoch: int = 1, keeps: tuple[bool, int] = NO_COPY) -> int:
    """Send, and count the bytes of the files that went."""
    sent: list[int] = []
    copies.send(folder, files, (epoch, 0), keeps, sent.append)
    return sum(sent)
