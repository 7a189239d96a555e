"""The figures of a weights file on a data set, as training makes them."""

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from yoloyard.commands.model import USED, Model
from yoloyard.common.cores import Threads
from yoloyard.common.device import choose_device, choose_precision, images_at_once, precision_text
from yoloyard.common.errors import UsageError
from yoloyard.common.files import new_run_folder, write_whole_text
from yoloyard.common.image_size import say_rounded
from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.common.structures import Detections
from yoloyard.common.tiles import image_facts
from yoloyard.common.versions import versions
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import ValConfig
from yoloyard.cpu.memory import reuse_memory
from yoloyard.data.audit.problems import summary
from yoloyard.data.formats.data_yaml import DataSpec, read_data_yaml
from yoloyard.data.formats.labels import composed
from yoloyard.data.index.index import Index, load_index
from yoloyard.data.index.selection import class_numbers, names_of, select
from yoloyard.data.index.tiled import tiled
from yoloyard.data.loading.limits import check_limit
from yoloyard.data.loading.loader import Loader, make_val_loader
from yoloyard.evaluation.metrics.coco import Metrics, evaluate
from yoloyard.evaluation.metrics.showing import Showing
from yoloyard.evaluation.predictions import save_json
from yoloyard.evaluation.validate import PATH_NAMES, other_path, predict_all
from yoloyard.runtimes.network import Network
from yoloyard.runtimes.runtime import Runtime

log = logging.getLogger(__name__)

DEFAULT_BATCH = 32
AMP_LINE = (
    "computing in float32; --amp computes in bfloat16, which this device has: 1.5 times as fast where it was measured, "
    "with an mAP that differed by less than 0.001"
)


@dataclass(frozen=True)
class Validation:
    """The figures of a validation and the folder of its report."""

    config: ValConfig
    images: int
    metrics: Metrics
    other: Metrics | None  # of the network's other path, with or without suppression
    folder: Path

    @property
    def report(self) -> Path:
        """The page with figures, curves and images."""
        return self.folder / "report.html"

    def as_dict(self) -> dict[str, Any]:
        """The document of `yoloyard val --json` (docs/json.md)."""
        return {
            "weights": self.config.weights,
            "data": self.config.data,
            "split": self.config.split,
            "images": self.images,
            "figures": self.metrics.figures(),
            "confidence": self.metrics.confidence,
            "paths": [each.path_figures() for each in (self.metrics, self.other) if each is not None],
            "classes": [asdict(row) for row in self.metrics.classes],
            "report": self.report,
        }


def validate(weights: str | Path = "", data: str | Path = "", **overrides: Any) -> Validation:
    """Evaluate `weights` on a split of the data.yaml `data` and write the report into a new run folder.

    `overrides` are the other flags of `yoloyard val` (see `ValConfig`). What is None comes from the weights file.
    Raises UsageError or UserError if something is missing or does not fit.
    """
    check_limit()
    config = with_overrides(ValConfig(), {"weights": weights, "data": data, **overrides})
    if not config.weights or not config.data:
        raise UsageError("say which weights file and which data.yaml to validate: --weights FILE --data FILE")
    threads = Threads(choose_device(config.device).type)
    given = {name: getattr(config, name) for name in USED}
    models = [model := Model(config.weights, config.device, config.amp, for_figures=True, **given)]
    network, metadata, settings = model.network, model.metadata, model.settings
    if isinstance(network, Network) and len(network.paths) > 1:
        path = other_path(settings.suppression)
        given |= {"suppression": path, "iou": config.iou if path == "on" else None}
        models.append(Model(config.weights, config.device, config.amp, for_figures=True, **given))
    device, precision, fixed_shape = network.device, network.precision, network.fixed_shape
    spec = read_data_yaml(config.data)
    index, order = index_for(network, spec, config.weights, config.split)
    if not fixed_shape:
        say_rounded(model.wanted_imgsz, model.imgsz, model.stride)
    reuse_memory(precision)
    could_be = choose_precision(device, amp=isinstance(network, Network) and config.amp is None).name
    if (precision.name, could_be) == ("float32", "bfloat16"):
        log.info(AMP_LINE)
    batch = config.batch or metadata.get("evaluation", {}).get("batch", DEFAULT_BATCH)
    at_once = images_at_once(device, model.imgsz)
    tiles = tiled(index, model.tile)
    loader = make_val_loader(
        tiles, model.imgsz, batch, model.stride, config.workers, at_once=at_once, fixed_shape=fixed_shape
    )
    folder = new_run_folder(Path(config.project), config.name or "val")
    threads.choose(wait=True)
    try:
        predictions, *another = [_predictions(each, loader, order) for each in models]
    finally:
        threads.restore()
    metrics = _metrics(model, index, predictions)
    other = _metrics(models[1], index, another[0]) if another else None
    done = Validation(config, len(index), metrics, other, folder)
    overlap = f"IoU {settings.iou}" if settings.suppression == "on" else PATH_NAMES["off"]
    from yoloyard.evaluation.report.report import write_report  # matplotlib takes half a second to import

    write_report(
        done.report,
        title=f"{Path(config.weights).name} on {spec.path.name}, {config.split}",
        metrics=metrics,
        other=other,
        index=index,
        predictions=predictions,
        facts={
            "Weights": config.weights,
            "Model": metadata.get("model", "unknown"),
            "Data": f"{spec.path}, {config.split}, {len(index):,} images",
            **image_facts(model.imgsz, index.pixels, model.tile),
            "NMS": f"score above {settings.conf}, {overlap}, at most {settings.max_det} boxes",
            "Device": f"{device}, {precision_text(precision, device)}",
            "Versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        },
        commands={"Find objects in images": f"yoloyard predict --weights {shlex.quote(config.weights)} IMAGES"},
    )
    write_whole_text(folder / "metrics.json", json.dumps(metrics.figures(), indent=1))
    if config.save_json:
        save_json(folder / "predictions.json", index, predictions)
    return done


def _predictions(model: Model, loader: Loader, order: Sequence[int]) -> dict[int, Detections]:
    """Detections by image, with the numbers that their classes have in the data by `order`."""
    numbers = torch.tensor(order)
    found_by_image = predict_all(model.network, loader, model.settings, tiling=loader.dataset.index.tiling)
    return {image_id: replace(found, labels=numbers[found.labels]) for image_id, found in found_by_image.items()}


def _metrics(model: Model, index: Index, predictions: Mapping[int, Detections]) -> Metrics:
    settings, showing = model.settings, Showing.of(model.metadata).within(model.settings)
    return evaluate(index, predictions, settings.max_det, showing, settings.suppression)


def index_for(network: Runtime, spec: DataSpec, weights: str, split: str) -> tuple[Index, list[int]]:
    """The split with the classes that the weights were trained on, and for each of their classes its number there.

    `weights` names them in messages. Raises UsageError where the classes don't fit.
    """
    trained = network.metadata.get("config", {})
    classes, single_cls = trained.get("classes"), trained.get("single_cls", False)
    names = names_of(spec.names, single_cls)
    if len(names) != len(network.names):
        raise UsageError(
            f"{weights} knows {len(network.names)} classes ({', '.join(network.names[:10])}), "
            f"{spec.path} has {len(names)} ({', '.join(names[:10])})"
        )
    order = class_order(network.names, names, f"{weights} and {spec.path}")
    if order != list(range(len(names))):
        log.info(f"the classes of {spec.path} are in another order than those of {weights}: they are matched by name")
        if classes is not None:
            classes = ",".join(str(order[number]) for number in class_numbers(classes, network.names))
    elif names != network.names:
        log.warning(f"the classes have other names in {weights}: {', '.join(network.names)}")
    index = select(load_index(spec.with_pixels(PixelSpec.of(network.metadata), weights), split), classes, single_cls)
    if classes is not None:
        chosen = ", ".join(spec.names[number] for number in class_numbers(classes, spec.names))
        log.info(f"as in training, only boxes of these classes are counted: {chosen}")
    for line in summary(split, index.problems):
        log.info(line)
    return index, order


def class_order(trained: Sequence[str], names: Sequence[str], files: str) -> list[int]:
    """For each class of the weights file, its number in the data: by name where both have the same names, else equal.

    Case and spaces at the ends don't matter. Raises UsageError, naming `files`, where some names have moved and others
    are not the same: no order would be right for sure.
    """
    plain_trained, plain = ([composed(name.strip().lower()) for name in each] for each in (trained, names))
    if sorted(plain_trained) == sorted(plain) and len(set(plain)) == len(plain):
        return [plain.index(name) for name in plain_trained]
    for number, name in enumerate(plain_trained):
        if name in plain and plain[number] != name:
            raise UsageError(
                f"{files} give the class {trained[number]!r} the numbers {number} and {plain.index(name)}, and not all "
                f"their classes are the same: {', '.join(trained)} and {', '.join(names)}; use the same names in both"
            )
    return list(range(len(names)))
