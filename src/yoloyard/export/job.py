"""One export: what is asked for, the weights, and where the files go."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from yoloyard.commands.val import index_for
from yoloyard.common.device import Precision
from yoloyard.common.image_size import ImageSize, of_metadata
from yoloyard.common.lineage import longer_history
from yoloyard.config.settings import ExportConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import Index
from yoloyard.export.graph import traced
from yoloyard.models.detector import Detector
from yoloyard.runtimes.metadata import FileFacts
from yoloyard.runtimes.network import Network

OF_TRAINING = ("classes", "single_cls")  # settings that say which classes of the data the weights know


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
    def imgsz(self) -> ImageSize:
        """The size that an image is fitted into: multiples of the largest stride."""
        return self.detector.input_size(self.config.imgsz or of_metadata(self.metadata))

    @cached_property
    def reference(self) -> Network:
        """What the files are compared with: torch, in float32, on the CPU."""
        return Network(self.detector, torch.device("cpu"), Precision("cpu", torch.float32), self.metadata)

    @cached_property
    def program(self) -> ExportedProgram:
        """The network as several targets are made of it. Raises UserError as `traced` does."""
        return traced(self)

    @cached_property
    def labelled(self) -> tuple[Index, list[int]] | None:
        """The val split of `--data`, and for each class of the weights its number there.

        Raises UsageError or UserError for data that can't be used.
        """
        if self.config.data is None:
            return None
        spec = read_data_yaml(self.config.data)
        return index_for(self.reference, spec, self.config.weights, "val")

    def path(self, suffix: str, precision: str = "float32") -> Path:
        """Where a file goes: `best.onnx`, `best.int8.onnx`, `best.float16.xml` ..."""
        infix = "" if precision == "float32" else f".{precision}"
        return self.folder / f"{self.weights.stem}{infix}{suffix}"

    def document(self, precision: str = "float32", **facts: Any) -> str:
        """The JSON that a file of this precision carries under `metadata.KEY`."""
        own = replace(self.facts, precision=precision, **facts)
        history = longer_history(self.metadata, "exported", self.weights.name, own.weights_sha256)
        # of the training, which names folders and addresses of its host, what `val` needs
        config = {name: value for name, value in self.metadata.get("config", {}).items() if name in OF_TRAINING}
        return json.dumps({**self.metadata, "config": config, "history": history, "file": own.as_dict()})
