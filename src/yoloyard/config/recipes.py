"""The published training defaults of each family, and the choice that fits them to the run at hand.

The published recipes assume hundreds of thousands of images; where a run has few updates, the recipe for small sets
takes over. A value that the user gave is never touched.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

from yoloyard.common.errors import UsageError
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import OPTIMIZERS, TrainConfig

FEW_UPDATES = 1000  # of the nominal batch; below, the recipe for small sets is taken
MANY_UPDATES = 10_000  # above, `auto` means SGD or MuSGD, as published
SGD_RATES: dict[str, Any] = {"optimizer": "SGD", "lr0": 0.01, "momentum": 0.937, "warmup_bias_lr": 0.0}
ADAMW_RATES: dict[str, Any] = {"optimizer": "AdamW", "lr0": 0.002, "momentum": 0.9, "warmup_bias_lr": 0.0}

# Where a published recipe differs from the defaults of config/settings.py, by how a name begins: the first
# that fits counts. YOLOv8, YOLO11 and YOLO12 were published with the values that are the defaults there (ultralytics
# 8.3.78, default settings for detection). YOLOv5 7.0: its "scratch" recipes, low for n and s, high for the larger ones;
# what high has of copy-paste needs polygons and is left out.
YOLOV5_LOW: dict[str, Any] = {"optimizer": "SGD", "box": 0.05, "cls": 0.5, "obj": 1.0, "close_mosaic": 0, "iou": 0.6}
YOLOV5_HIGH: dict[str, Any] = YOLOV5_LOW | {"cls": 0.3, "obj": 0.7, "lrf": 0.1, "scale": 0.9, "mixup": 0.1}
# YOLOv13: its project page; copy-paste is left out here, too, and JPEG compression as an augmentation.
YOLOV13: dict[str, Any] = {"warmup_bias_lr": 0.0}
RECIPES: dict[str, dict[str, Any]] = {
    "yolov5n": YOLOV5_LOW,
    "yolov5s": YOLOV5_LOW,
    "yolov5": YOLOV5_HIGH,
    "yolov8": {},
    "yolo11": {},
    "yolo12": {},
    "yolo26": {},
    "yolov13s": YOLOV13 | {"scale": 0.9, "mixup": 0.05},
    "yolov13l": YOLOV13 | {"scale": 0.9, "mixup": 0.15},
    "yolov13x": YOLOV13 | {"scale": 0.9, "mixup": 0.2},
    "yolov13": YOLOV13,
    "yolov9": {"optimizer": "SGD"},  # of MultimediaTechLab's training; see docs/choices.md
}
# YOLO26 was published with MuSGD; its momentum is 0.9 in the first step alone, then that of the warm-up, as here.
RATES_OF_MANY: dict[str, dict[str, Any]] = {"yolo26": SGD_RATES | {"optimizer": "MuSGD"}}
# `--preset`. The camera of a line stands still, and its colours don't change. Which turns a part allows, how its belt
# runs and whether its light changes, only the user knows; docs/line.md has measurements.
PRESETS: dict[str | None, dict[str, Any]] = {
    None: {},
    "inspection": {
        "hsv_h": 0.0,
        "hsv_s": 0.2,
        "hsv_v": 0.2,
        "scale": 0.25,
        "flipud": 0.5,
        "fliplr": 0.5,
        "copy_paste": 0.5,
    },
}
CUSTOM_RECIPES: dict[object, dict[str, Any]] = {"anchor_based": YOLOV5_LOW}  # by a head's criterion


def published(model: str, criterion: object, preset: str | None = None) -> dict[str, Any]:
    """The settings in which the model's published recipe, and then the `preset`, differ from the defaults.

    A model without one gets what goes with the `criterion` of its head.
    """
    return {**_by_name(RECIPES, model, CUSTOM_RECIPES.get(criterion, {})), **PRESETS[preset]}


def fit_to_run(
    config: TrainConfig, given: Collection[str], num_images: int, num_classes: int
) -> tuple[TrainConfig, str]:
    """Choose what depends on the number of updates; returns the configuration and one line that says what was chosen.

    `given` are the names of the settings that the user gave. Raises UsageError for an unknown optimizer.
    """
    optimizer = config.optimization.optimizer
    if optimizer not in OPTIMIZERS:
        raise UsageError(f"unknown optimizer '{optimizer}': there are {', '.join(OPTIMIZERS)}")
    nominal = max(config.batch, config.optimization.nbs)
    updates = math.ceil(num_images / nominal) * config.epochs
    schedule: dict[str, Any] = {}
    if updates < FEW_UPDATES and "nbs" not in given:
        name = f"for small sets, since {nominal} images an update would leave only {updates} updates"
        updates = math.ceil(num_images / config.batch) * config.epochs
        schedule = {
            "nbs": config.batch,
            "warmup_epochs": min(config.optimization.warmup_epochs, round(0.1 * config.epochs, 1)),
            # The published ramp leaves a short run without any averaging; now the memory at the run's end is a
            # twentieth of its updates.
            "ema_ramp": round(min(updates / max(math.log(updates / 20), 1), config.optimization.ema_ramp), 1),
            "close_mosaic": min(config.augment.close_mosaic, config.epochs // 5),
        }
        lr0 = 0.002
        if not {"optimizer", "lr0"} & set(given):
            optimizer = "auto"  # also where the published recipe names one
    else:
        name = f"as published, {updates} updates of {nominal} images"
        lr0 = round(0.002 * 5 / (4 + num_classes), 6)  # as when YOLOv8 and YOLO11 were published (ultralytics 8.3)
    many = _by_name(RATES_OF_MANY, config.model, SGD_RATES)
    rates = many if updates > MANY_UPDATES else ADAMW_RATES | {"lr0": lr0}
    # The rates belong to the optimizer that they come with.
    chosen = {**schedule, **(rates if optimizer == "auto" else {})}
    chosen = {key: value for key, value in chosen.items() if key == "optimizer" or key not in given}
    said = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in chosen.items()
    )
    return with_overrides(config, chosen), f"recipe {name}: {said or 'all as you set it'}"


def _by_name(table: Mapping[str, Mapping[str, Any]], model: str, other: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the first name that `model` begins with; `other` if there is none or it is FILE.py:FUNCTION."""
    return next((found for name, found in table.items() if model.startswith(name) and ":" not in model), other)
