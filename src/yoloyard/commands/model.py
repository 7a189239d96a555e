"""A weights file as a function of images: what `yoloyard.load` returns and `yoloyard predict` uses."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yoloyard.commands.sources import check_kind
from yoloyard.common.device import images_at_once
from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.image_size import of_metadata, of_shape, rounded_up, shape_of, size_text
from yoloyard.common.log import ONCE
from yoloyard.common.nms import KEEPS_ALL
from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.common.structures import Detections, ImageTransform
from yoloyard.common.tiles import TileSpec, tile_boxes
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import EvaluationConfig, ModelConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.pixels import channels
from yoloyard.data.pixels.arrays import is_one_image, pixels_of
from yoloyard.data.pixels.augment import letterbox, minimal_shape
from yoloyard.evaluation.metrics.showing import Showing
from yoloyard.evaluation.seams import merge_seams
from yoloyard.evaluation.validate import detect
from yoloyard.runtimes.exported import Exported, announce, shape_text
from yoloyard.runtimes.load import load_runtime
from yoloyard.storage.fetch import local_weights

log = logging.getLogger(__name__)

USED = ("imgsz", "tile", "tile_overlap", "conf", "iou", "max_det", "suppression", "names")  # of the file, unless given


class Model:
    """A network with the settings of its file: `model(image)` gives Detections.

    `weights` is a weights file or an exported file. `settings` are imgsz, tile, tile_overlap, conf, iou, max_det,
    suppression and names; `conf` and `iou` are by default the pair that the training chose for showing, with
    `for_figures` those of validation. Where the file or `tile` says so, images are cut into tiles. `image` is a path, a
    uint8 RGB array (H, W, 3), a PIL image, or a list of these, which gives a list. Raises UsageError for wrong
    settings, and a `suppression` that the file can't have; UserError for a file that can't be used.
    """

    def __init__(
        self,
        weights: str | Path,
        device: str | int | torch.device | None = "auto",
        amp: bool | None = None,
        for_figures: bool = False,
        **settings: Any,
    ) -> None:
        if not isinstance(weights, str | os.PathLike) or not str(weights).strip():
            raise UsageError(f"say which weights file to load: a path, not {weights!r:.80}")
        config = with_overrides(ModelConfig(), {"weights": weights, "device": device, **settings})
        names = _names_given(config.names) if config.names else ()
        self.network = load_runtime(local_weights(config.weights), config.device, amp, names, config.suppression)
        if config.iou is not None and not self.network.suppression:
            raise UsageError(f"{config.weights} is used without suppression: leave out --iou, or say --suppression on")
        config = replace(config, suppression="on" if self.network.suppression else "off")
        self.metadata, self.names = self.network.metadata, self.network.names
        self.pixels = PixelSpec.of(self.metadata)
        kept = self.metadata.get("evaluation", {})
        self.settings = settings_for(config, kept) if for_figures else shown_settings(config, self.metadata)
        self.stride = max(self.network.strides)
        trained = TileSpec.of(self.metadata)
        self.tile = TileSpec.of(self.metadata, config.tile, config.tile_overlap)
        self.wanted_imgsz = config.imgsz or of_metadata(self.metadata)  # before it is rounded to the stride
        if trained and self.tile and self.tile.size != trained.size and not config.imgsz:  # objects keep their scale
            self.wanted_imgsz = self.tile.imgsz_for(trained.scale(self.wanted_imgsz))
        self.imgsz = rounded_up(self.wanted_imgsz, self.stride)
        if fixed := self.network.fixed_shape:
            if config.imgsz and shape_of(self.imgsz) != fixed:
                takes = f"{config.weights} takes images of {shape_text(fixed)} pixels alone"
                asked = size_text(config.imgsz)
                raise UserError(f"{takes}: leave out --imgsz {asked}, or export with it, or with --dynamic")
            self.imgsz = of_shape(fixed)
        if config.tile_overlap is not None and self.tile is None:
            raise UsageError(
                f"{config.weights} takes whole images: say --tile PIXELS, too, or leave out --tile-overlap"
            )
        if (trained is None) != (self.tile is None) and not config.imgsz:
            cut = trained or "whole images"
            log.info(f"the network is for {cut}: objects may come at another scale, which --imgsz decides", extra=ONCE)
        elif trained and self.tile:
            ratio = self.tile.scale(self.imgsz) / trained.scale(of_metadata(self.metadata))
            if round(ratio, 1) != 1:
                at = f"{self.tile} at imgsz {size_text(self.imgsz)}"
                log.info(f"{at} show objects at {ratio:.1f} times the scale of the training", extra=ONCE)
        if isinstance(self.network, Exported):
            announce(self.network, self.settings)

    def __call__(self, images: Any) -> Any:
        """Detections of an image, or a list of them for a list of images; boxes xyxy in pixels of each image.

        Raises UserError if an image can't be read or is something else (see `data.pixels.arrays.pixels_of`).
        """
        if is_one_image(images) or hasattr(images, "read"):  # an open file gives lines
            return self.find(_pixels(images, self.pixels))
        return [self.find(_pixels(image, self.pixels)) for image in images]

    def find(self, image: np.ndarray) -> Detections:
        """Detections of an image (H, W, channels) that is made already as `pixels` says."""
        if self.tile is None:
            return self.detect([self.letterboxed(image)])[0]
        height, width = image.shape[:2]
        tiles = tile_boxes(height, width, self.tile)
        limits = images_at_once(self.network.device, self.imgsz), self.network.max_batch
        at_once = min(each or len(tiles) for each in limits)
        found: list[Detections] = []
        for start in range(0, len(tiles), at_once):
            some = tiles[start : start + at_once].tolist()
            found += self.detect([self.letterboxed(image[top:bottom, left:right]) for left, top, right, bottom in some])
        return merge_seams(found, tiles, self.settings.iou, self.settings.max_det)

    def input_shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the network's input for an image of this size, or for any tile."""
        free = shape_of(self.imgsz) if self.tile else minimal_shape(height, width, self.imgsz, self.stride)
        return self.network.fixed_shape or free

    def letterboxed(self, image: np.ndarray) -> tuple[np.ndarray, ImageTransform]:
        """The network's input (H, W, channels), for an image of this form, or a tile, and the way back."""
        height, width = image.shape[:2]
        shape = self.input_shape(height, width)
        if self.tile is None:
            return letterbox(image, shape)
        scaled = channels.resize(image, self.tile.scaled_shape(height, width, self.imgsz))
        return letterbox(scaled, shape, enlarge=False, original_shape=(height, width))

    def detect(self, boxed: Sequence[tuple[np.ndarray, ImageTransform]]) -> list[Detections]:
        """Detections of images that `letterboxed` gave, all of one shape, computed as one batch."""
        images = torch.from_numpy(np.stack([image for image, _ in boxed])).permute(0, 3, 1, 2).to(self.network.device)
        return detect(self.network, images, [transform for _, transform in boxed], self.settings, multi_label=False)


def settings_for(config: ModelConfig, kept: Mapping[str, Any]) -> EvaluationConfig:
    """How predictions are made: as `config` says, else as a weights file has `kept`, else by default."""
    known = {**kept, **{name: value for name, value in vars(config).items() if value is not None}}
    known = {name: known[name] for name in vars(EvaluationConfig()) if name in known}
    settings = with_overrides(EvaluationConfig(), known)
    return settings if settings.suppression == "on" else replace(settings, iou=KEEPS_ALL)


def shown_settings(config: ModelConfig, metadata: Mapping[str, Any]) -> EvaluationConfig:
    """Those by which `predict` shows the detections of a file with this metadata."""
    kept = metadata.get("evaluation", {})
    path = config.suppression or kept.get("suppression", "on")
    return settings_for(config, {**kept, **asdict(Showing.of(metadata).by_path(path))})


def _names_given(text: str) -> tuple[str, ...]:
    """The classes in the value of `--names`."""
    if text.lower().endswith((".yaml", ".yml")):
        return read_data_yaml(text).names
    return tuple(name.strip() for name in text.split(","))


def _pixels(image: Any, pixels: PixelSpec) -> np.ndarray:
    try:
        if isinstance(image, str | os.PathLike) and os.path.exists(path := os.path.expanduser(image)):
            check_kind(os.fsdecode(path))
        return pixels_of(image, pixels)
    except (NotImplementedError, TypeError, ValueError) as error:  # a meta or sparse tensor, a path with a NUL byte
        raise UserError(f"an image can't be {type(image).__name__} {image!r:.40}: {error}") from error
