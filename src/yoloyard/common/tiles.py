"""Tiles of large images: how they are cut, and at which scale a network sees them.

Boxes and tiles are xyxy in pixels of the whole image. T tiles.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from yoloyard.common.errors import UsageError
from yoloyard.common.image_size import ImageSize, of_shape, parse_size, shape_of, size_text
from yoloyard.common.pixel_spec import PixelSpec

MIN_TILE_PIXELS = 32  # the largest stride of most networks


@dataclass(frozen=True)
class TileSpec:
    """How images are cut into tiles; a weights file keeps it under the key `tile`. Raises UsageError for tiny tiles."""

    size: ImageSize  # of a tile, in pixels of the original image
    overlap: float = 0.2  # of neighbouring tiles at least, as a share of a tile, 0 <= overlap < 1
    visible: float = 0.5  # a box counts in a tile that holds this share of it, of at most what a tile can hold

    def __post_init__(self) -> None:
        if min(shape_of(self.size)) < MIN_TILE_PIXELS:
            raise UsageError(f"--tile {size_text(self.size)}: a tile has at least {MIN_TILE_PIXELS} pixels a side")

    def __str__(self) -> str:
        return f"tiles of {size_text(self.size)} pixels that overlap by {self.overlap:.0%}"

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def of(
        cls, metadata: Mapping[str, Any], size: ImageSize | None = None, overlap: float | None = None
    ) -> Self | None:
        """That of a weights file with this metadata; None for one that sees whole images.

        `size` and `overlap` take the place of the kept ones; with a size of 0 images are not cut.
        """
        kept = dict(metadata.get("tile") or {})
        given = {"size": size, "overlap": overlap}
        kept |= {name: value for name, value in given.items() if value is not None}
        return cls(**kept | {"size": parse_size(kept["size"])}) if kept.get("size") else None

    def scaled_shape(self, height: int, width: int, imgsz: ImageSize) -> tuple[int, int]:
        """Height and width that a tile of this height and width has in the network's input, rounded up.

        A whole tile just fits into `imgsz`; a smaller one, of a smaller image, has the same scale, so that a defect has
        one size in all images.
        """
        most, ratio = shape_of(imgsz), self.scale(imgsz)
        return min(math.ceil(height * ratio), most[0]), min(math.ceil(width * ratio), most[1])

    def scale(self, imgsz: ImageSize) -> float:
        """Pixels of the network's input of `imgsz` for each pixel of a tile."""
        most, tile = shape_of(imgsz), shape_of(self.size)
        return min(most[0] / tile[0], most[1] / tile[1])

    def imgsz_for(self, scale: float) -> ImageSize:
        """The network's input in which a tile has this scale, not yet rounded to the stride."""
        return of_shape([math.ceil(side * scale - 1e-6) for side in shape_of(self.size)])


def image_facts(imgsz: ImageSize, pixels: PixelSpec, tile: TileSpec | None) -> dict[str, str]:
    """For reports: what images are as the network sees them, and whether they are cut into tiles."""
    size = f"{size_text(imgsz)} pixels, {pixels.text}"
    return {"Image size": size, "Tiles": str(tile or "none, images are whole")}


def tile_boxes(height: int, width: int, spec: TileSpec) -> np.ndarray:
    """The tiles int32 (T, 4) of an image of this size, row by row.

    A regular grid; its last row and column are moved inward, so that all tiles have full size. An image that is smaller
    than a tile, in height or width, has tiles of its own height or width.
    """
    tile = np.minimum(shape_of(spec.size), (height, width))
    steps = np.maximum(np.floor(np.multiply(shape_of(spec.size), 1 - spec.overlap) + 1e-6).astype(int), 1)
    tops, lefts = (
        np.minimum(np.arange(0, length - side + step, step), length - side)
        for length, side, step in zip((height, width), tile, steps, strict=True)
    )
    corners = np.stack(np.meshgrid(lefts, tops), axis=-1).reshape(-1, 2)  # x, y
    return np.concatenate((corners, corners + tile[::-1]), axis=1).astype(np.int32)
