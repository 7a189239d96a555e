"""The commands for weights files alone: `info` and `import`."""

import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from yoloyard.cli.flags import Json, print_json, stdout_for_json

MODEL_HELP = "a name, a weights file or its address, or my_model.py:build; without one, all names are listed"


def info(
    model: Annotated[str, Parameter(name=["--model", "--weights"], help=MODEL_HELP)] = "",
    *,
    json: Json = False,
) -> None:
    """Show the layers and the cost of a model or a weights file."""
    from rich.console import Console
    from rich.table import Table

    from yoloyard.commands.info import describe
    from yoloyard.common.errors import printable
    from yoloyard.evaluation.validate import PATH_NAMES
    from yoloyard.models import registry

    with stdout_for_json(json):
        found: dict[str, Any] = describe(os.path.expanduser(model)) if model else {"models": list(registry.BUILDERS)}
    if json:
        print_json(found)
        return
    console = Console(highlight=False, soft_wrap=True)
    if not model:
        console.print("models: " + ", ".join(found["models"]))
        return
    for name, value in found["metadata"].items():
        console.print(f"{name}: {printable(str(value))}", markup=False)
    if "blocks" not in found:
        if not found["metadata"]:
            console.print(f"{model} has no metadata of yoloyard")
        return
    paths, used = found["suppression"]["paths"], found["suppression"]["used"]
    if paths != ["on"]:
        named = [PATH_NAMES[name] + (" (used)" if name == used and len(paths) > 1 else "") for name in paths]
        console.print(f"{'two paths' if len(paths) > 1 else 'one path'}: {', '.join(named)}")
    table = Table("block", "name", "kind", "parameters", "GFLOPs")
    for block in found["blocks"]:
        gigaflops = f"{block['flops'] / 1e9:.3f}"
        table.add_row(str(block["index"]), block["name"], block["kind"], f"{block['parameters']:,}", gigaflops)
    console.print(table)
    attention = f" and {found['attention_flops'] / 1e9:.2f} G of attention" if found["attention_flops"] else ""
    console.print(
        f"{len(found['blocks'])} blocks, {found['parameters']:,} parameters, {found['flops'] / 1e9:.1f} GFLOPs of "
        f"convolutions{attention} at {found['imgsz']} pixels, strides {', '.join(map(str, found['strides']))}, "
        f"{found['num_classes']} classes"
    )


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
