"""From a user's overrides to a run that is ready: overrides -> RunSpec -> Setup."""

import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from yoloyard.common.device import Precision
from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.files import RunLock, new_run_folder, write_whole, write_whole_text
from yoloyard.common.image_size import rounded_up
from yoloyard.common.user_file import UserFile
from yoloyard.config import recipes
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import AUTO, TrainConfig, flat_settings
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import Index
from yoloyard.data.index.selection import class_numbers, names_of
from yoloyard.data.loading.batches import training_buckets
from yoloyard.data.pixels.transform import Transform, restore
from yoloyard.models import registry
from yoloyard.models.custom_model import CustomModel, is_custom, read_kept
from yoloyard.models.detector import Detector
from yoloyard.storage.address import is_address
from yoloyard.training.distributed.watch import apart
from yoloyard.training.setup.anchors import fit_anchors
from yoloyard.training.setup.batch_size import find_batch
from yoloyard.training.setup.dataset import load_splits, load_splits_again
from yoloyard.training.setup.matching_report import matching_report
from yoloyard.training.setup.settings import check_new, choose_path, derive
from yoloyard.training.setup.starting_point import build_detector, freeze, starting_point
from yoloyard.training.spec import RunSpec
from yoloyard.training.state.checkpoint import retire
from yoloyard.training.state.randomness import seed_all
from yoloyard.training.strategies import check_strategy

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """A run that is ready to begin: its specification and the parts that are built from it."""

    spec: RunSpec
    folder: Path
    device: torch.device
    detector: Detector  # on the CPU
    train_tiles: Index  # what is trained on: the training images or, with `--tile`, their tiles
    val_tiles: Index  # the same of validation
    transform: Transform | None  # the user's

    @property
    def config(self) -> TrainConfig:
        """The resolved configuration."""
        return self.spec.config

    @property
    def train_index(self) -> Index:
        """The training images, which are whole here."""
        return self.train_tiles.whole

    @property
    def val_index(self) -> Index:
        """The validation images, which are whole here."""
        return self.val_tiles.whole

    @property
    def precision(self) -> Precision:
        """The type of the arithmetic."""
        return Precision(self.device.type, getattr(torch, self.spec.precision), self.config.device_path)

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint that a resumed run begins with."""
        return self.folder / "checkpoints" / "last"

    def keep(self) -> None:
        """Write what decides the run into its folder: the resolved configuration and the user's transform."""
        text = yaml.safe_dump(flat_settings(self.config), sort_keys=False, allow_unicode=True)
        write_whole_text(self.folder / "config.yaml", text)
        if self.transform is not None:
            self.transform.keep(self.folder)

    def require_folder(self) -> None:
        """Raises UserError if the run folder has gone since `keep`, so that no part of it is made in its place."""
        if not (self.folder / "config.yaml").exists():
            raise UserError(f"cannot write {self.folder}: the run folder is gone; bring it back, or mount its disk.")


def new_run(
    given: dict[str, Any],
    device: torch.device,
    precision: str,
    num_processes: int,
    transform: Transform | None = None,
    lock: RunLock | None = None,
    folder: Path | None = None,
) -> Setup:
    """A new run from a user's checked overrides; its folder, a new one or `folder`, is locked.

    Raises UsageError or UserError.
    """
    config = with_overrides(TrainConfig(), given)
    check_new(config, given, device, num_processes)
    start = starting_point(given)
    custom, named = start.custom, given.get("model", start.model)
    if registry.plain_name(named) != named and os.path.isfile(named):
        log.info(f"the network is {start.model}; what the file {named} says of it is not read")
    transform = _transform(config, transform, custom)
    data = read_data_yaml(Path(config.data))
    names = names_of(data.names, config.single_cls)
    seed_all(config.seed)
    arguments = start.arguments(len(names), config.end2end, data.pixels.channels)
    detector = build_detector(start.model, custom, arguments)
    chosen = recipes.published(start.model, detector.head.criterion, config.preset) | given
    chosen["suppression"] = choose_path(detector, given.get("suppression"))
    chosen |= {"model": start.model, "data": str(data.path)}
    if config.tile and "imgsz" not in given:
        chosen["imgsz"] = rounded_up(config.tile, max(detector.strides))
    if start.file is not None:
        named = given.get("weights", named)
        chosen["weights"] = named if is_address(named) else str(start.file.resolve())
    if transform is not None and transform.file is not None:
        chosen["transform"] = f"{transform.file.path}:{transform.file.function}"
    if config.classes is not None:
        chosen["classes"] = class_numbers(config.classes, data.names)
    config = with_overrides(config, chosen)
    train, val = load_splits(data, config)
    if given.get("batch") == AUTO:
        arithmetic = Precision(device.type, getattr(torch, precision), config.device_path)
        boxes = training_buckets(train, config)[-1]
        found = find_batch(config, detector, device, arithmetic, boxes, num_processes)
        config = dataclasses.replace(config, batch=found)
    config = derive(config, given, detector, train, device, num_processes)
    licence = start.transfer(detector, names)
    if "anchors" in detector.head.constants and config.loss.autoanchor:
        fit_anchors(detector.head, train, config.imgsz, config.loss.anchor_t, config.seed)
    if report := matching_report(detector.head, start.model, train, config.imgsz, config.loss.anchor_t):
        for line in report.lines():
            log.info(line)
    freeze(detector, config.freeze)
    check_strategy(config, detector)
    if config.strategy == "pipeline" and train.pixels.bits == 16:
        raise UsageError(f"--strategy pipeline takes images of 8 bits: say `bits: 8` in {config.data}, or leave it out")

    # Named after the data file, or after the file's folder where it is called data.yaml.
    name = config.name or (data.path.parent.name if data.path.stem == "data" else "") or data.path.stem
    folder = folder or new_run_folder(Path(config.project), name, config.exist_ok)
    if lock is not None:
        lock.take(folder)
    retire(folder)
    if custom is not None:
        content = custom.source
        write_whole(folder / custom.path.name, lambda temporary: temporary.write_bytes(content))
    spec = RunSpec(
        config=config,
        given=given,
        names=names,
        images=train.whole.names_digest(),
        model_arguments=arguments,
        model_digest=custom.digest if custom else None,
        transform=None,
        licence=licence,
        history=start.history(config),
        precision=precision,
        pixels=train.pixels,
    )
    return build(spec, folder, device, transform, detector, (train, val))


def build(
    spec: RunSpec,
    folder: Path,
    device: torch.device,
    transform: Transform | None = None,
    detector: Detector | None = None,
    splits: tuple[Index, Index] | None = None,
    kept: Path | None = None,
) -> Setup:
    """The setup of the run in `folder` that `spec` describes, in every process of it.

    A new run has its `detector` and `splits` already. Without them the run has begun: its splits are loaded again, and
    the detector has random weights. A `transform` that is handed in takes the place of the kept one. `kept`: where the
    user's files are that the run has kept, if not in its folder.
    Raises UserError if data or the user's files have changed, UsageError if the transform must be handed in.
    """
    config = spec.config
    train, val = splits or load_splits_again(read_data_yaml(Path(config.data)), config, spec.pixels)
    if (train.whole.names_digest(), train.names) != (spec.images, spec.names):
        raise apart(
            f"the training images or the classes of {config.data} have changed since the run began; start a new one"
        )
    if train.pixels != spec.pixels:
        line = f"the images of {config.data} are {train.pixels.text} now, and were {spec.pixels.text}"
        raise apart(f"{line} when the run began; put channels, bits, window and files back, or start a new run")
    if detector is None:
        custom = read_kept(config.model, spec.model_digest, [kept or folder]) if is_custom(config.model) else None
        detector = build_detector(config.model, custom, spec.model_arguments)
        freeze(detector, config.freeze)
        check_strategy(config, detector)
    if transform is not None:
        spec = dataclasses.replace(spec, transform=transform.facts)
    elif spec.transform is not None:
        transform = restore(kept or folder, spec.transform)
    return Setup(
        spec=spec,
        folder=folder,
        device=device,
        detector=detector,
        train_tiles=train,
        val_tiles=val,
        transform=transform,
    )


def _transform(config: TrainConfig, transform: Transform | None, custom: CustomModel | None) -> Transform | None:
    if config.transform is None:
        return transform
    if transform is not None:
        raise UsageError(f"there are two transforms, {transform.name} and {config.transform}; leave one out")
    file = UserFile.read(config.transform, "transform", "transform: --transform my_transform.py:NAME")
    if custom is not None and custom.path.name == file.path.name and custom.source != file.source:
        raise UsageError(
            f"{custom.path} and {file.path} have the same name, and the run keeps a copy of both; rename one"
        )
    return Transform(file)
