"""From the detections of tiles to those of the images that they are parts of."""

from collections.abc import Mapping

import numpy as np

from yoloyard.common.structures import Detections
from yoloyard.data.index.tiled import Tiling
from yoloyard.evaluation.seams import merge_seams


class WholeImages:
    """Takes the detections of tiles as they come and gives those of an image as soon as all its tiles are there."""

    def __init__(self, tiling: Tiling, iou: float, max_det: int) -> None:
        self._tiling, self._limits = tiling, (iou, max_det)
        self._tiles = np.bincount(tiling.sources)  # of each image
        self._found: dict[int, dict[int, Detections]] = {}  # by image that is not whole yet, by tile

    def __call__(self, found: Mapping[int, Detections]) -> dict[int, Detections]:
        """Detections by image, of those that are whole now, from detections by tile, boxes in pixels of the tile."""
        whole = {}
        for tile, detections in found.items():
            image = int(self._tiling.sources[tile])
            tiles = self._found.setdefault(image, {})
            corner = detections.boxes.new_tensor(self._tiling.crops[tile, [0, 1, 0, 1]])
            tiles[tile] = Detections(detections.boxes + corner, detections.scores, detections.labels)
            if len(tiles) == self._tiles[image]:
                numbers = sorted(self._found.pop(image))
                parts = [tiles[each] for each in numbers]
                whole[image] = merge_seams(parts, self._tiling.crops[numbers], *self._limits)
        return whole
