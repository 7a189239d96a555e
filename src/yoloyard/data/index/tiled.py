"""A split as tiles: an index whose images are tiles of the split's, so that all that takes an index takes tiles.

Shapes: N tiles, T of them of one image; k boxes of an image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from yoloyard.common.image_size import ImageSize, shape_of
from yoloyard.common.tiles import TileSpec, tile_boxes
from yoloyard.config.settings import TrainConfig
from yoloyard.data.index.index import Index
from yoloyard.data.pixels.augment import resized_shape


@dataclass(frozen=True, eq=False)
class Tiling:
    """Where the tiles of an index come from."""

    spec: TileSpec
    whole: Index  # the split itself
    sources: np.ndarray  # int64 (N,), ascending: the image in `whole` that each tile is part of
    crops: np.ndarray  # int32 (N, 4) xyxy, pixels of that image


def tile_spec(config: TrainConfig) -> TileSpec | None:
    """How a run cuts its images; None where it doesn't."""
    return TileSpec(config.tile, config.tile_overlap, config.tile_visible) if config.tile else None


def tiled(index: Index, spec: TileSpec | None) -> Index:
    """The tiles of all images of `index`, image by image, with the boxes that count in each; without `spec` itself."""
    if spec is None:
        return index
    grids: dict[tuple[int, ...], np.ndarray] = {}
    found, crops = [], []
    for position, (height, width) in enumerate(index.sizes.tolist()):
        tiles = grids.setdefault((height, width), tile_boxes(height, width, spec))
        first = int(index.offsets[position])
        of_image, boxes, rows = boxes_in_tiles(index.boxes[first : index.offsets[position + 1]], tiles, spec.visible)
        found.append((np.bincount(of_image, minlength=len(tiles)), boxes, first + rows))
        crops.append(tiles)
    counts, boxes, rows = map(np.concatenate, zip(*found, strict=True))
    sources, corners = np.repeat(np.arange(len(index)), list(map(len, crops))), np.concatenate(crops)
    return replace(
        index,
        sizes=corners[:, [3, 2]] - corners[:, [1, 0]],
        offsets=np.concatenate(([0], np.cumsum(counts))),
        boxes=boxes,
        labels=index.labels[rows],
        ignore=index.ignore[rows],
        source_ids=index.source_ids[sources],
        paths=index.paths.at(sources),
        file_names=index.file_names.at(sources),
        file=None,
        tiling=Tiling(spec, index, sources, corners),
    )


def input_boxes(index: Index, imgsz: ImageSize) -> np.ndarray:
    """All boxes of `index` as validation places them, float32 (n, 4) xyxy, pixels of the network's input of `imgsz`."""
    fit = resized_shape if index.tiling is None else index.tiling.spec.scaled_shape
    sizes, number = np.unique(index.sizes, axis=0, return_inverse=True)
    scaled = np.array([fit(height, width, imgsz) for height, width in sizes.tolist()])
    ways = scaled / sizes, (shape_of(imgsz) - scaled) // 2  # scales, and padding above and to the left
    of_box = np.repeat(number.ravel(), np.diff(index.offsets))
    scale, padding = (way.astype(np.float32)[of_box][:, [1, 0, 1, 0]] for way in ways)
    return index.boxes * scale + padding


def boxes_in_tiles(boxes: np.ndarray, tiles: np.ndarray, visible: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of the boxes (k, 4) count in which of the tiles (T, 4): numbers of tiles, boxes cut, numbers of boxes.

    A box counts in a tile that holds at least the share `visible` of it, or of as much as a tile can hold, so that one
    that is larger counts in each tile that it fills; and in the tile that holds most of it, so that none is lost.
    Boxes (n, 4) are cut at the edges of their tile, in pixels of the tile. Tiles are in their order.
    """
    boxes_here = np.asarray(boxes, np.float64)[None]
    low, high = np.maximum(boxes_here[..., :2], tiles[:, None, :2]), np.minimum(boxes_here[..., 2:], tiles[:, None, 2:])
    inside = (high - low).clip(0).prod(axis=2)  # (T, k)
    most = np.minimum(boxes_here[..., 2:] - boxes_here[..., :2], (tiles[:, 2:] - tiles[:, :2])[:, None]).prod(axis=2)
    counts = inside >= visible * most
    counts |= inside == inside.max(axis=0)
    counts &= inside > 0
    of_tile, rows = np.nonzero(counts)
    corners = tiles[of_tile][:, :2]
    cut = np.concatenate((low[of_tile, rows] - corners, high[of_tile, rows] - corners), axis=1)
    return of_tile, cut.astype(np.float32), rows
