"""The commands for weights files: `import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def import_weights(
    file: Annotated[Path, Parameter(help="a .pt file; nothing in it is executed")],
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"], help="default: the same name, .safetensors")] = None,
) -> None:
    """Convert a .pt file of another project to a weights file."""
    from yoloyard.models.importing.importers import read_checkpoint
    from yoloyard.models.weights import save_weights

    out = out or file.with_suffix(".safetensors")
    state, metadata = read_checkpoint(file)
    save_weights(out, state, metadata)
    print(f"{out}: {metadata['model']}, {len(metadata['names'])} classes; its weights are under {metadata['licence']}")
