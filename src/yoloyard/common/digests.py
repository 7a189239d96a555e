"""Digests by which contents are compared: of a file, and of yoloyard's own source."""

import hashlib
from functools import cache
from pathlib import Path

import yoloyard


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def source_sha256() -> str:
    """SHA-256 of yoloyard's own files, by which two commits differ that have one version."""
    root, digest = Path(yoloyard.__file__).parent, hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()
