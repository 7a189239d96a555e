"""What decides a run, as checkpoints keep it and as its processes hand it to each other."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from yoloyard.common.lineage import Step
from yoloyard.common.pixel_spec import EIGHT_BITS, PixelSpec
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import TrainConfig, flat_settings
from yoloyard.data.pixels.transform import KEPT_PIPELINE


@dataclass(frozen=True)
class RunSpec:
    """What decides a run. A new run, a resumed one and a process that joins build the same `Setup` from it."""

    config: TrainConfig  # resolved, with all that was derived
    given: dict[str, Any]  # the user's own overrides
    names: tuple[str, ...]  # of the classes
    images: str  # digest of the names of the training images in their order, which decides which one comes when
    model_arguments: dict[str, Any]  # with the model's name they build the detector
    model_digest: str | None  # SHA-256 of the user's file; None: the model is no custom one
    transform: dict[str, Any] | None  # kind, name and digest of the user's transform
    licence: str | None  # of the weights that training started from
    precision: str = ""  # float32, bfloat16 or float16; empty: checkpoints of format 2 don't say
    history: list[Step] | None = None  # of the weights that come out; None: older checkpoints don't say
    pixels: PixelSpec = EIGHT_BITS  # what the images are made of; older checkpoints had no others

    @property
    def model_name(self) -> str:
        """How weights files name the model: a custom one by its file and function, without the folder."""
        return Path(self.config.model).name if self.model_digest else self.config.model

    @property
    def kept_files(self) -> list[str]:
        """The user's files in the run folder that the run is built from: of a custom model, of a transform."""
        names = [self.model_name.rpartition(":")[0]] if self.model_digest else []
        if self.transform is not None and self.transform["kind"] != "callable":
            is_file = self.transform["kind"] == "file"
            names.append(self.transform["name"].rpartition(":")[0] if is_file else KEPT_PIPELINE)
        return names

    def to_json(self) -> dict[str, Any]:
        """The specification in the types of JSON, for `from_json`."""
        return vars(self) | {
            "config": flat_settings(self.config),
            "names": list(self.names),
            "pixels": self.pixels.as_dict(),
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """What `to_json` gave, or the state.json of format 2. Raises UsageError for a setting that is unknown here."""
        values = {field.name: saved[field.name] for field in fields(cls) if field.name in saved}
        config = with_overrides(TrainConfig(), saved["config"])
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in saved["given"].items()}
        derived = {"config": config, "given": given, "names": tuple(saved["names"]), "pixels": PixelSpec.of(saved)}
        return cls(**values | derived)
