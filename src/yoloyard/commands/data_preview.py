"""`yoloyard data preview`: what the network will see, on a page, before anything is trained."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yoloyard.common.image_size import size_text
from yoloyard.common.structures import Batch, Sample
from yoloyard.config.settings import AUTO, AugmentConfig, TrainConfig
from yoloyard.data.index.index import Index
from yoloyard.data.loading.batches import TrainingBatches
from yoloyard.data.loading.loader import make_train_loader
from yoloyard.data.loading.sampling import BatchRequest
from yoloyard.evaluation.report.preview_page import Preview, View, box_sizes, write_preview_page
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


def preview_data(given: dict[str, Any]) -> Path:
    """Write the page for a training with these checked overrides into a new run folder; returns its path.

    The samples are those of the first epoch, by the same seed. Raises UsageError or UserError as a training does.
    """
    given = {"name": "preview"} | given | {"cache": None, "workers": 0}
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
        seen, before = _view(samples, request), samples.boxes
        shown_alone = {name: _view(batches, request) for name, batches in alone.items()}
        previews.append(Preview(int(order[position]), seen, before, shown_alone))
    page, title = setup.folder / "preview.html", f"Preview of {Path(config.data).name}"
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


def _view(batches: TrainingBatches, request: BatchRequest) -> View:
    """The one image of a request. Raises UserError if a file can't be read."""
    batch = batches[request]
    if not isinstance(batch, Batch):
        raise batch
    count = int((batch.labels[0] >= 0).sum())
    pixels = batch.images[0].permute(1, 2, 0).numpy()
    return View(pixels, batch.boxes[0, :count].numpy(), batch.labels[0, :count].numpy())


def _facts(config: TrainConfig, index: Index) -> dict[str, object]:
    pixels, changed = index.pixels, dataclasses.asdict(config.augment)
    on = [f"{name} {changed[name]}" for name in STILL if changed[name] != STILL[name]]
    unit = "% of each image's pixels" if pixels.percent else ""
    facts: dict[str, object] = {
        "Data": config.data,
        "Image size": size_text(config.imgsz),
        "Channels": f"{pixels.channels}, a file each" if pixels.files else pixels.channels,
        "Bits": pixels.bits,
        "Window": "{} to {} {}".format(*pixels.window, unit) if pixels.window else "all values",
    }
    if index.tiling is not None:
        spec, images = index.tiling.spec, len(index.whole)
        facts["Tile"] = f"{size_text(spec.size)}, overlap {spec.overlap:g}: {len(index):,} of {images:,} images"
    return facts | {"Preset": config.preset or "none", "Augmentation": ", ".join(on) or "none", "Seed": config.seed}
