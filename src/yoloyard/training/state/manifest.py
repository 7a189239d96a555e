"""What a checkpoint consists of: each file with its size and SHA-256, in `manifest.json` beside them."""

import json
from collections.abc import Collection
from pathlib import Path

from yoloyard.common.digests import file_sha256

NAME = "manifest.json"


def write_manifest(folder: Path) -> None:
    """List all files of `folder`, which is complete but for this."""
    files = {path.name: _facts(path) for path in sorted(folder.iterdir())}
    (folder / NAME).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")


def damage(folder: Path, names: Collection[str] | None = None) -> str:
    """What is wrong with a checkpoint's files, or with those of these `names`, by its manifest; empty for nothing."""
    try:
        files: dict[str, dict[str, int | str]] = json.loads((folder / NAME).read_text(encoding="utf-8"))["files"]
        if "state.json" not in files:
            return f"{NAME} does not list all files"
        for name, expected in files.items():
            path = folder / name
            if names is not None and name not in names:
                continue
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != expected["size"]:
                return f"{name} has {size:,} bytes instead of {expected['size']:,}"
            if _facts(path) != expected:
                return f"{name} has another content than was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{NAME} can't be read ({error})"
    return ""


def _facts(path: Path) -> dict[str, int | str]:
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}
