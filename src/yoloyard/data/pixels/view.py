"""Images of any number of channels and bits as a person can look at them."""

from pathlib import Path

import numpy as np

from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.data.pixels.decode import decode_image


def view_of(path: Path, pixels: PixelSpec) -> np.ndarray:
    """The image of a file, or of the files that belong to it, as `viewed` shows it. Raises what `decode_image` does."""
    return viewed(decode_image(path, pixels=pixels))


def viewed(image: np.ndarray) -> np.ndarray:
    """An image of the network, uint8 or uint16 (H, W, channels), as uint8 RGB (H, W, 3).

    Three or more channels: the first three are red, green and blue. One or two: the first one is shown as grey. Of
    16 bits the upper 8 are shown. An image with a window has gone through it already, so it is seen as the network
    sees it.
    """
    shown = image[..., :3] if image.shape[2] >= 3 else image[..., :1]
    if image.dtype == np.uint16:
        shown = (shown >> 8).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(shown, (*image.shape[:2], 3)))
