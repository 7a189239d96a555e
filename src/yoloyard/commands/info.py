"""What `yoloyard info` says of a model or a weights file."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from yoloyard.models import registry
from yoloyard.models.custom_model import is_custom, read_custom
from yoloyard.models.importing.torch_files import names_in
from yoloyard.models.profile import profile
from yoloyard.models.weights import WEIGHT_FILES, load_model
from yoloyard.runtimes.document import READERS, read_document
from yoloyard.storage.fetch import local_weights

log = logging.getLogger(__name__)

SHOWN_METADATA = (
    "model", "names", "imgsz", "tile", "pixels", "epoch", "metrics", "licence", "evaluation", "showing", "versions",
    "file",
)  # fmt: skip


def describe(model: str) -> dict[str, Any]:
    """The document of `yoloyard info MODEL --json` (docs/json.md): blocks, cost, and the metadata of a weights file.

    `model` is a name, a weights file or its address, or my_model.py:build. Of an exported file there is the metadata
    alone, with how it is fed and read in `file`. Raises UserError or UsageError otherwise.
    """
    metadata: dict[str, Any] = {}
    file = Path(model) if registry.plain_name(model) in registry.BUILDERS else local_weights(model)
    if file.suffix.lower() in READERS:
        document = read_document(file) or {}
        return {"model": model, "metadata": {name: document[name] for name in SHOWN_METADATA if document.get(name)}}
    if file.suffix.lower() in WEIGHT_FILES:
        if asked := names_in(file):
            names = ", ".join(ascii(name)[1:-1] for name in asked)
            log.info(f"the file names these functions and classes; none of them is run: {names}")
        detector, metadata = load_model(file)
    elif is_custom(model):
        detector = read_custom(model).build(num_classes=80, channels=None)
    else:
        with torch.device("meta"):
            detector = registry.build(model, num_classes=80)
    # the forward of a custom model may look at numbers
    device = "cpu" if is_custom(metadata.get("model", model)) else "meta"
    paths = list(detector.head.paths)
    cost = asdict(profile(detector, device=device))
    return {
        "model": model,
        "metadata": {name: metadata[name] for name in SHOWN_METADATA if metadata.get(name) not in (None, {})},
        "suppression": {"paths": paths, "used": metadata.get("evaluation", {}).get("suppression", paths[0])},
        "num_classes": detector.num_classes,
        "blocks": cost.pop("layers"),
        **cost,
    }
