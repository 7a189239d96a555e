"""Images of any number of channels and bits as a person can look at them."""

import numpy as np


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
