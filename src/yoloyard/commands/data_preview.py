"""`yoloyard data preview`: what the network will see, on a page, before anything is trained."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yoloyard.common.lineage import data_name
from yoloyard.common.structures import Batch, Sample
from yoloyard.common.tiles import image_facts
from yoloyard.config.settings import AUTO, AugmentConfig, TrainConfig, settings_of
from yoloyard.data.index.index import Index
from yoloyard.data.index.tiled import tile_spec
from yoloyard.data.loading.batches import TrainingBatches
from yoloyard.data.loading.loader import make_train_loader
from yoloyard.data.loading.sampling import BatchRequest
from yoloyard.evaluation.report.preview_page import Preview, box_sizes, write_preview_page
from yoloyard.training.setup.setup import new_run

SHOWN, SHOWN_WITHOUT_BOXES = 12, 3  # samples, and how many of them may have no box in their own image
# Settings that belong together are shown together. Those of the first group have an end, see `close_mosaic`.
UNTIL_CLOSE = ("mosaic", "mixup", "copy_paste")
GROUPS = {
    **{name: (name,) for name in UNTIL_CLOSE},
    "position": ("degrees", "translate", "scale", "shear", "perspective"),
    "colours": ("hsv_h", "hsv_s", "hsv_v"),
    "flips": ("flipud", "fliplr"),
    **{name: (name,) for name in ("rotate90", "light", "noise")},
    "belt_blur": ("belt_blur", "belt_angle"),
}
STILL: dict[str, Any] = {name: 0.0 for names in GROUPS.values() for name in names} | {"rotate90": "0"}
ALWAYS = (*UNTIL_CLOSE, "flipud", "fliplr")  # probabilities: what is shown alone happens
# Settings that change nothing of what the network sees: most of those that a resumed run may change, and these.
UNSEEN = {name for name, leaf in settings_of(TrainConfig).items() if leaf.resumable} - {"epochs", "time"}
UNSEEN |= {"amp", "best_by", "cache", "check_duplicates", "class_weights", "device_path", "exist_ok", "freeze"}
UNSEEN |= {"suppression", "sync_bn"}


def preview_data(given: dict[str, Any]) -> Path:
    """Write the page for a training with these checked overrides into a new run folder; returns its path.

    The samples are those of the first epoch, by the same seed. Settings that are UNSEEN count for nothing.
    Raises UsageError or UserError as a training does.
    """
    given = {name: value for name, value in given.items() if name not in UNSEEN} | {"workers": 0}
    if given.get("batch") == AUTO:  # which would measure a step
        del given["batch"]
    setup = new_run(given, torch.device("cpu"), "float32", 1)
    config, stride = setup.config, max(setup.detector.strides)
    loader = make_train_loader(setup.train_tiles, config, stride=stride, transform=setup.transform)
    index, images, plan = loader.dataset.index, loader.dataset.images, loader.dataset.plan
    mosaic = loader.requests(0)[0].mosaic
    samples = _Counting(index, images, config, plan, setup.transform)
    alone = {
        name: TrainingBatches(index, images, dataclasses.replace(config, augment=augment), plan)
        for name, augment in augmentations_alone(config.augment, mosaic).items()
    }
    if setup.transform is not None:
        still = dataclasses.replace(config, augment=dataclasses.replace(config.augment, **STILL))
        alone["transform"] = TrainingBatches(index, images, still, plan, setup.transform)
    order = plan.order(0).images
    previews = []
    for position in _chosen(order, np.diff(index.offsets)):
        request = BatchRequest(0, range(position, position + 1), mosaic)
        samples.boxes = 0
        seen, before = _sample(samples, request), samples.boxes
        shown_alone = {name: _sample(batches, request) for name, batches in alone.items()}
        previews.append(Preview(int(order[position]), seen, before, shown_alone))
    page, title = setup.folder / "preview.html", f"Preview of {data_name(config.data)}"
    write_preview_page(page, title, index, previews, box_sizes(index, config.imgsz), _facts(config, index))
    return page


def augmentations_alone(config: AugmentConfig, mosaic: bool) -> Mapping[str, AugmentConfig]:
    """For each group of settings that is on, those alone; what has a probability happens always.

    `mosaic`: whether the epoch still has mosaics, and what ends with them.
    """
    found = {}
    for group, names in GROUPS.items():
        on = {name: value for name in names if (value := getattr(config, name)) != STILL[name]}
        if on and (mosaic or group not in UNTIL_CLOSE):
            on = {name: 1.0 if name in ALWAYS else value for name, value in on.items()}
            found[group] = dataclasses.replace(config, **STILL | on)
    return found


class _Counting(TrainingBatches):
    """Training batches that count the boxes that go into them."""

    boxes = 0

    def _pasted(self, *arguments: Any) -> Sample:
        sample = super()._pasted(*arguments)
        self.boxes += len(sample.labels)
        return sample


def _chosen(order: np.ndarray, counts: np.ndarray) -> list[int]:
    """The first positions of the epoch, most of them of images with boxes; `counts` are those of the index."""
    has_boxes = counts[order] > 0
    without = np.flatnonzero(~has_boxes)[:SHOWN_WITHOUT_BOXES].tolist()
    return sorted(np.flatnonzero(has_boxes)[: SHOWN - len(without)].tolist() + without)


def _sample(batches: TrainingBatches, request: BatchRequest) -> Sample:
    """The one sample of a request. Raises UserError if a file can't be read."""
    batch = batches[request]
    if not isinstance(batch, Batch):
        raise batch
    labels = batch.labels[0].numpy()
    boxes, labels, ignore = (part[labels >= 0] for part in (batch.boxes[0].numpy(), labels, batch.ignore[0].numpy()))
    return Sample(batch.images[0].permute(1, 2, 0).numpy(), boxes, labels, ignore, batch.image_ids[0])


def _facts(config: TrainConfig, index: Index) -> dict[str, object]:
    changed = dataclasses.asdict(config.augment)
    on = [f"{name} {changed[name]}" for name in STILL if changed[name] != STILL[name]]
    return {
        "Data": config.data,
        **image_facts(config.imgsz, index.pixels, tile_spec(config)),
        "Preset": config.preset or "none",
        "Augmentation": ", ".join(on) or "none",
        "Seed": config.seed,
    }
