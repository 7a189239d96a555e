"""Images from a program: paths, arrays and Pillow's images become the pixels that a file would give."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from yoloyard.common.errors import UserError
from yoloyard.common.pixel_spec import EIGHT_BITS, PixelSpec
from yoloyard.data.pixels.decode import COLOUR_CHANNELS, compose, decode_image
from yoloyard.data.pixels.depth import to_pixels


def is_one_image(given: Any) -> bool:
    """Whether this is a single image (or is mistaken for one), not a list, tuple or iterator of images."""
    return not isinstance(given, list | tuple) and not hasattr(given, "__next__")


def pixels_of(given: Any, pixels: PixelSpec = EIGHT_BITS) -> np.ndarray:
    """The image as `pixels` says (H, W, channels): for most networks uint8 RGB (H, W, 3).

    Accepts paths, arrays and CPU or GPU tensors of 8 or 16 bit, (H, W) grey or (H, W, 1 | 3 | 4), colours as RGB or
    RGBA, and Pillow's images of every mode with 8 or 16 bit. Colours become grey for one channel; for other numbers of
    channels arrays must have them. Values are those of a file: they get the window, and 16 bits hold those of 8 times
    257 (see `depth.to_pixels`). Raises UserError that says what to do for anything else.
    """
    if isinstance(given, str | os.PathLike) and isinstance(path := os.fspath(given), str):
        return decode_image(Path(os.path.expanduser(path)), pixels=pixels)
    if any(kind.__module__.startswith("PIL.") for kind in type(given).__mro__):
        given = _of_pillow(given)
    if isinstance(given, torch.Tensor) and given.dtype in (torch.uint8, torch.uint16):
        given = given.detach().cpu().numpy()
    if not isinstance(given, np.ndarray | torch.Tensor):
        wanted = "give a path, a uint8 RGB array (height, width, 3), a PIL image, or a list of these"
        raise UserError(f"an image can't be {type(given).__name__} {given!r:.40}: {wanted}")
    if given.dtype not in (np.uint8, np.uint16):
        hint = "a tensor of 0..1: (image * 255).byte(); an array of 0..1: (image * 255).astype('uint8')"
        raise UserError(f"an image must be of uint8 or uint16, not {given.dtype} {tuple(given.shape)} ({hint})")
    if given.ndim == 2:
        given = given[..., None]
    channels = 3 if pixels.takes_colours else pixels.channels
    if given.ndim != 3 or given.shape[2] not in (COLOUR_CHANNELS if pixels.takes_colours else (channels,)):
        hint = "several in one array: list(images)" if given.ndim == 4 else "channels first: image.permute(1, 2, 0)"
        hint = hint if given.ndim != 3 or pixels.takes_colours else f"the network takes {channels} channels, last"
        raise UserError(f"an image must be (height, width, {channels}), not {tuple(given.shape)} ({hint})")
    if not given.size:
        raise UserError(f"an image must have pixels, and {tuple(given.shape)} has none")
    if not pixels.takes_colours:
        image = to_pixels(given, pixels)
    elif pixels.channels == 1:
        is_grey, colours = given.shape[2] == 1, np.ascontiguousarray(given[..., :3])
        image = to_pixels(given if is_grey else cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)[..., None], pixels)
    else:
        image = to_pixels(given[..., :3], pixels)
        if given.shape[2] == 4:
            image = compose(image, to_pixels(given[..., 3], replace(pixels, window=None)))
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
