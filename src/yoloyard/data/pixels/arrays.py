"""Images from a program: paths, arrays and Pillow's images become the pixels that a file would give."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yoloyard.common.errors import UserError
from yoloyard.data.pixels.decode import compose, decode_image
from yoloyard.data.pixels.depth import to_8_bits


def is_one_image(given: Any) -> bool:
    """Whether this is a single image (or is mistaken for one), not a list, tuple or iterator of images."""
    return not isinstance(given, list | tuple) and not hasattr(given, "__next__")


def pixels_of(given: Any) -> np.ndarray:
    """The image as uint8 RGB (H, W, 3).

    Accepts paths, arrays and CPU or GPU tensors of 8 or 16 bit, (H, W) grey or (H, W, 1 | 3 | 4), colours as RGB or
    RGBA, and Pillow's images of every mode with 8 or 16 bit. Raises UserError that says what to do for anything else.
    """
    if isinstance(given, str | os.PathLike) and isinstance(path := os.fspath(given), str):
        return decode_image(Path(os.path.expanduser(path)))
    if any(kind.__module__.startswith("PIL.") for kind in type(given).__mro__):
        given = _of_pillow(given)
    if isinstance(given, torch.Tensor) and given.dtype == torch.uint8:
        given = given.detach().cpu().numpy()
    if not isinstance(given, np.ndarray | torch.Tensor):
        wanted = "give a path, a uint8 RGB array (height, width, 3), a PIL image, or a list of these"
        raise UserError(f"an image can't be {type(given).__name__} {given!r:.40}: {wanted}")
    if given.dtype not in (np.uint8, np.uint16):
        hint = "a tensor of 0..1: (image * 255).byte(); an array of 0..1: (image * 255).astype('uint8')"
        raise UserError(f"an image must be of uint8 or uint16, not {given.dtype} {tuple(given.shape)} ({hint})")
    if given.ndim == 2:
        given = given[..., None]
    if given.ndim != 3 or given.shape[2] not in (1, 3, 4):
        hint = "several in one array: list(images)" if given.ndim == 4 else "channels first: image.permute(1, 2, 0)"
        raise UserError(f"an image must be (height, width, 3), not {tuple(given.shape)} ({hint})")
    if not given.size:
        raise UserError(f"an image must have pixels, and {tuple(given.shape)} has none")
    image = to_8_bits(given[..., :3])
    if given.shape[2] == 4:
        image = compose(image, to_8_bits(given[..., 3]))
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return np.require(image, requirements=("C", "W"))  # torch warns of an array that can't be written


def _of_pillow(image: Any) -> np.ndarray:
    """An image of Pillow as an array of 8 or 16 bit, its EXIF orientation applied as for a file."""
    from PIL import ImageOps

    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            return np.asarray(image).astype(np.uint16)
        if image.mode not in ("I", "F", "RGB"):
            has_alpha = "A" in image.mode or "a" in image.mode or "transparency" in image.info
            image = image.convert("RGBA" if has_alpha else "RGB")
        return np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:  # it reads the file now, if it was opened from one
        raise UserError(f"cannot read the PIL image {image!r:.80}: {error}") from error
