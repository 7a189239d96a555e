"""Image sizes as users write them, and the shapes that images are fitted into."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yoloyard.common.image_size import ImageSize, of_metadata, of_shape, parse_size, rounded_up, shape_of, size_text
from yoloyard.config.overrides import checked_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.data.loading.sampling import rectangular_shape
from yoloyard.data.pixels.augment import minimal_shape, resized_shape

STRIDE = 32
lengths = st.integers(1, 5000)
multiples = st.integers(1, 20).map(lambda count: count * STRIDE)
shapes = st.tuples(multiples, multiples)


@given(st.integers(32, 10**5), st.integers(32, 10**5))
def test_a_size_is_read_as_it_is_written(height: int, width: int) -> None:
    size = of_shape((height, width))
    for written in (size_text(size), size, list(shape_of(size)), np.array((height, width)), f"{height}X{width}"):
        assert checked_overrides(TrainConfig, {"imgsz": written}) == {"imgsz": size}
    assert of_metadata({"imgsz": list(shape_of(size))}) == size


def test_what_is_no_size_stays_for_a_message() -> None:
    for other in ("512x", "x512", "1.5x2", [64], [64, 64, 64], [64, True], ["64", "64"], None):
        assert parse_size(other) == other
    assert of_metadata({}) == 640


@given(st.tuples(lengths, lengths), st.integers(1, 64))
def test_both_sides_are_rounded_up_once(shape: tuple[int, int], multiple: int) -> None:
    rounded = rounded_up(of_shape(shape), multiple)
    assert all(
        side % multiple == 0 and 0 <= side - least < multiple
        for side, least in zip(shape_of(rounded), shape, strict=True)
    )
    assert rounded_up(rounded, multiple) == rounded


@given(lengths, lengths, shapes)
def test_an_image_just_fits_with_as_little_padding_as_the_stride_allows(
    height: int, width: int, shape: tuple[int, int]
) -> None:
    fitted, boxed = resized_shape(height, width, shape), minimal_shape(height, width, shape, STRIDE)
    ratio = min(shape[0] / height, shape[1] / width)
    for side, own, padded, most in zip((height, width), fitted, boxed, shape, strict=True):
        assert max(side * ratio - 1e-9, 1) <= own < side * ratio + 1
        assert padded % STRIDE == 0
        assert padded <= most
        assert 0 <= padded - max(1, round(side * ratio)) < STRIDE
    assert fitted[0] == shape[0] or fitted[1] == shape[1]


@given(lengths, lengths, multiples, st.floats(0.05, 20), st.floats(1, 5))
def test_a_square_gives_the_shapes_that_it_always_gave(
    height: int, width: int, side: int, lowest: float, more: float
) -> None:
    ratio, highest = side / max(height, width), lowest * more
    for size in (side, (side, side)):
        assert resized_shape(height, width, size) == (
            min(math.ceil(height * ratio), side),
            min(math.ceil(width * ratio), side),
        )
        least = [max(1, round(length * min(side / height, side / width))) for length in (height, width)]
        assert minimal_shape(height, width, size) == tuple(length + (side - length) % 32 for length in least)
        shape = (highest, 1.0) if highest < 1 else (1.0, 1 / lowest) if lowest > 1 else (1.0, 1.0)
        wanted = tuple(math.ceil(part * side / 32 + 0.5) * 32 for part in shape)
        assert rectangular_shape(lowest, highest, size, 32) == wanted


@pytest.mark.parametrize("size", [(64, 256), (256, 64), 128])
@given(st.lists(st.tuples(lengths, lengths), min_size=1, max_size=6))
def test_a_batch_is_as_large_as_its_largest_image_and_no_larger(size: ImageSize, images: list[tuple[int, int]]) -> None:
    ratios = sorted(height / width for height, width in images)
    shape = rectangular_shape(ratios[0], ratios[-1], size, STRIDE)
    fitted = np.array([resized_shape(*image, size) for image in images])
    spare = shape - fitted.max(axis=0)
    assert (spare >= STRIDE / 2 - 1).all()
    assert (spare <= 1.5 * STRIDE).all()
