"""The geometry of tiles."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yoloyard.common.errors import UsageError
from yoloyard.common.tiles import TileSpec, tile_boxes
from yoloyard.config.settings import TrainConfig

sides = st.integers(1, 700)
specs = st.builds(
    TileSpec, st.integers(32, 400) | st.tuples(st.integers(32, 400), st.integers(32, 400)), st.floats(0, 0.95)
)


@given(sides, sides, specs)
def test_tiles_cover_the_image_at_full_size_and_overlap(height: int, width: int, spec: TileSpec) -> None:
    tiles = tile_boxes(height, width, spec)
    shape = spec.size if isinstance(spec.size, tuple) else (spec.size, spec.size)
    for axis, length, side in ((1, height, shape[0]), (0, width, shape[1])):
        starts, ends = np.unique(tiles[:, axis]), np.unique(tiles[:, axis + 2])
        assert (ends - starts == min(side, length)).all()
        assert (starts[0], ends[-1]) == (0, length)
        assert (ends[:-1] - starts[1:] >= math.floor(spec.overlap * side)).all()
        step = max(int(side * (1 - spec.overlap) + 1e-6), 1)
        assert len(starts) == len(ends) == 1 + math.ceil(max(length - side, 0) / step)
    assert len(tiles) == len(np.unique(tiles[:, 0])) * len(np.unique(tiles[:, 1])) == len(np.unique(tiles, axis=0))


def test_tiles_in_numbers() -> None:
    assert tile_boxes(640, 1700, TileSpec(640)).tolist() == [
        [0, 0, 640, 640], [512, 0, 1152, 640], [1024, 0, 1664, 640], [1060, 0, 1700, 640],
    ]  # fmt: skip
    assert tile_boxes(100, 200, TileSpec((64, 400), overlap=0)).tolist() == [[0, 0, 200, 64], [0, 36, 200, 100]]


def test_all_tiles_have_one_scale() -> None:
    assert TileSpec(640).scaled_shape(640, 640, 640) == (640, 640)
    assert TileSpec(640).scaled_shape(300, 640, 640) == (300, 640)
    assert TileSpec(1280).scaled_shape(1280, 601, 640) == (640, 301)
    assert TileSpec((600, 1000)).scaled_shape(600, 1000, (608, 1024)) == (608, 1014)


def test_a_spec_comes_from_metadata_and_settings() -> None:
    spec, settings = TileSpec((64, 400), 0.3, 0.7), TrainConfig()
    kept = {"tile": {**spec.as_dict(), "size": [64, 400]}}  # as JSON gives it back
    assert TileSpec.of(kept) == spec
    assert TileSpec.of(kept, overlap=0.1) == TileSpec((64, 400), 0.1, 0.7)
    assert TileSpec.of(kept, size=0) is TileSpec.of({}) is None
    assert TileSpec.of({}, 640) == TileSpec(640, settings.tile_overlap, settings.tile_visible)
    with pytest.raises(UsageError, match="--tile 20: a tile has at least 32 pixels"):
        TileSpec(20)
