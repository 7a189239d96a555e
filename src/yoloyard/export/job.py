"""One export: what is asked for, the weights, and where the files go."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yoloyard.common.lineage import longer_history
from yoloyard.config.settings import ExportConfig
from yoloyard.models.detector import Detector
from yoloyard.runtimes.metadata import FileFacts


@dataclass(frozen=True)
class Job:
    """What each target is handed. `detector` is as `load_model` gives it: float32, on the CPU, in evaluation mode."""

    config: ExportConfig
    weights: Path  # by which files are named; where they were read, their copy may have another name
    detector: Detector
    metadata: Mapping[str, Any]  # of the weights file
    facts: FileFacts
    folder: Path

    @property
    def precision(self) -> str:
        """Of the files that are not quantised."""
        return "float16" if self.config.half else "float32"

    @property
    def imgsz(self) -> int:
        """Side in pixels of the square that an image is fitted into: a multiple of the largest stride."""
        return self.detector.input_size(self.config.imgsz or self.metadata.get("imgsz", 640))

    def path(self, suffix: str, precision: str = "float32") -> Path:
        """Where a file goes: `best.onnx`, `best.int8.onnx`, `best.float16.xml` ..."""
        infix = "" if precision == "float32" else f".{precision}"
        return self.folder / f"{self.weights.stem}{infix}{suffix}"

    def document(self, precision: str = "float32", **facts: Any) -> str:
        """The JSON that a file of this precision carries under `metadata.KEY`."""
        own = replace(self.facts, precision=precision, **facts)
        history = longer_history(self.metadata, "exported", self.weights.name, own.weights_sha256)
        return json.dumps({**self.metadata, "history": history, "file": own.as_dict()})
