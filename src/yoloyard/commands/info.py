"""What `yoloyard info` prints."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from yoloyard.common.errors import printable
from yoloyard.models import registry
from yoloyard.models.custom_model import is_custom
from yoloyard.models.importing.torch_files import names_in
from yoloyard.models.profile import profile
from yoloyard.models.weights import WEIGHT_FILES, load_model


def describe(model: str) -> None:
    """Print the names there are, a model's layers and cost, or a weight file's own words."""
    console = Console(highlight=False, soft_wrap=True)
    if not model:
        console.print("models: " + ", ".join(registry.names()))
        return
    device = "meta"
    if Path(model).suffix.lower() in WEIGHT_FILES:
        asked = names_in(Path(model))
        if asked:
            names = ", ".join(ascii(name)[1:-1] for name in asked)
            console.print(f"the file names these functions and classes; none of them is run: {names}", markup=False)
        detector, metadata = load_model(Path(model))
        device = "cpu" if is_custom(metadata["model"]) else device
        for name in ("model", "names", "imgsz", "epoch", "metrics", "licence", "evaluation", "showing", "versions"):
            if metadata.get(name) not in (None, {}):
                console.print(f"{name}: {printable(str(metadata[name]))}", markup=False)
    elif is_custom(model):
        detector, device = registry.build(model, num_classes=80), "cpu"  # its forward may look at numbers
    else:
        with torch.device("meta"):
            detector = registry.build(model, num_classes=80)
    cost = profile(detector, device=device)
    table = Table("block", "name", "kind", "parameters", "GFLOPs")
    for layer in cost.layers:
        table.add_row(str(layer.index), layer.name, layer.kind, f"{layer.parameters:,}", f"{layer.flops / 1e9:.3f}")
    console.print(table)
    attention = f" and {cost.attention_flops / 1e9:.2f} G of attention" if cost.attention_flops else ""
    console.print(
        f"{len(cost.layers)} blocks, {cost.parameters:,} parameters, {cost.flops / 1e9:.1f} GFLOPs of "
        f"convolutions{attention} at {cost.imgsz} pixels, strides {', '.join(map(str, cost.strides))}, "
        f"{detector.num_classes} classes"
    )
