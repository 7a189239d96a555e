"""What OpenCV does to images, for any number of channels, uint8 or uint16: it takes at most four channels at a time.

Images are (H, W, channels) and stay so. Where no image is, they are as grey as the background.
"""

from collections.abc import Callable

import cv2
import numpy as np

from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.data.pixels.decode import BACKGROUND

AT_ONCE = 4  # channels


def background(dtype: np.dtype) -> int:
    """The grey where no image is, in values of uint8 or uint16."""
    return BACKGROUND if dtype == np.uint8 else BACKGROUND * 257


def blank_like(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Nothing but background in `shape` (H, W), with channels and type of `image`."""
    return np.full((*shape, image.shape[2]), background(image.dtype), image.dtype)


def empty(images: int, shape: tuple[int, int], pixels: PixelSpec) -> np.ndarray:
    """Memory for so many images of one size, (B, H, W, channels), not filled."""
    return np.empty((images, *shape, pixels.channels), pixels.dtype)


def resize(image: np.ndarray, shape: tuple[int, int], out: np.ndarray | None = None) -> np.ndarray:
    """The image in `shape` (H, W), bilinear, written into `out` (H, W, channels) if that is given."""
    size = shape[::-1]
    if image.shape[2] in (2, 3, 4):
        return cv2.resize(image, size, dst=out, interpolation=cv2.INTER_LINEAR)
    out = np.empty((*shape, image.shape[2]), image.dtype) if out is None else out
    _in_parts(image, out, lambda part: cv2.resize(part, size, interpolation=cv2.INTER_LINEAR))
    return out


def pad(image: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """The image with so many pixels of background at its sides."""
    height, width = image.shape[:2]
    padded = blank_like(image, (height + top + bottom, width + left + right))
    padded[top : top + height, left : left + width] = image
    return padded


def warp(image: np.ndarray, matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The image moved by `matrix` (3, 3), between centres of pixels, onto background of `shape` (H, W), bilinear."""
    fill, size = (background(image.dtype),) * AT_ONCE, shape[::-1]
    has_perspective = bool(matrix[2, :2].any())
    move = cv2.warpPerspective if has_perspective else cv2.warpAffine
    out = np.empty((*shape, image.shape[2]), image.dtype)
    _in_parts(image, out, lambda part: move(part, matrix if has_perspective else matrix[:2], size, borderValue=fill))
    return out


def _in_parts(image: np.ndarray, out: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write into `out` (H', W', channels) what `change` gives for at most four channels at a time."""
    for first in range(0, image.shape[2], AT_ONCE):
        channels = slice(first, first + AT_ONCE)
        part = image[..., channels]
        changed = change(part if part.shape == image.shape else np.ascontiguousarray(part))
        out[..., channels] = changed.reshape(*out.shape[:2], -1)
