"""From the values in a camera's files to pixels of 8 or 16 bits: depth and window."""

from functools import lru_cache

import cv2
import numpy as np

from yoloyard.common.pixel_spec import PixelSpec

DEPTHS = (8, 10, 12, 14, 16)  # bits of cameras; the brightest value of a 16-bit image tells its depth


def depth_of(values: np.ndarray) -> int:
    """The smallest depth of a camera that holds the brightest of these values, uint8 or uint16."""
    brightest = int(values.max())
    return next(bits for bits in DEPTHS if brightest < 2**bits)


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Values of 8 or 16 bit as uint8: those of 16 are shifted from their depth (see `depth_of`) down to 8 bits."""
    return values if values.dtype == np.uint8 else (values >> (depth_of(values) - 8)).astype(np.uint8)


def to_pixels(values: np.ndarray, pixels: PixelSpec) -> np.ndarray:
    """The values of an image's files, uint8 or uint16 of any shape, as pixels of `pixels.dtype` in the same shape.

    A window is stretched over all of 0..255 or 0..65535, what lies outside becomes the darkest or the brightest; its
    percentiles are those of all channels together (as `np.percentile` has them). Without one, 16 bits hold all of the
    file's depth (see `depth_of`), of 8-bit files the values times 257; 8 bits are as `to_8_bits` makes them.
    Two values stay two wherever the window is no wider than the brightest pixel.
    """
    if pixels.window is None:
        if pixels.bits == 8:
            return to_8_bits(values)
        low, high = 0.0, 2.0 ** depth_of(values) - 1 if values.dtype == np.uint16 else 255.0
    else:
        low, high = percentiles(values, pixels.window) if pixels.percent else pixels.window
    if (low, high) == (0, np.iinfo(values.dtype).max) and values.dtype == pixels.dtype:
        return values
    return _table(values.dtype, low, high, pixels.largest)[values]


def percentiles(values: np.ndarray, window: tuple[float, float]) -> tuple[float, float]:
    """Two percentiles of all values, uint8 or uint16, linear between neighbours: `np.percentile`, many times faster."""
    counts = (
        cv2.calcHist([values.reshape(-1, 1)], [0], None, [65536], [0, 65536])
        if values.dtype == np.uint16
        else (np.bincount(values.reshape(-1), minlength=256))
    )
    up_to = np.cumsum(counts, dtype=np.int64)
    places = np.array(window) / 100 * (values.size - 1)
    below, above = (np.searchsorted(up_to, step(places), side="right") for step in (np.floor, np.ceil))
    low, high = below + (above - below) * (places - np.floor(places))
    return float(low), float(high)


@lru_cache(maxsize=16)
def _table(dtype: np.dtype, low: float, high: float, largest: int) -> np.ndarray:
    """The pixel for each value of `dtype`."""
    shares = (np.arange(np.iinfo(dtype).max + 1) - low) / max(high - low, 1e-9)
    # Half is rounded up: to even, 0.5 and 1.5 and 2.5 would be two numbers.
    pixels = np.floor(np.clip(shares, 0, 1) * largest + 0.5)
    return pixels.astype(np.uint8 if largest == 255 else np.uint16)
