"""The size that images are fitted into: one number of pixels for a square, or a height and a width."""

import math
import re

ImageSize = int | tuple[int, int]  # a square's side, or (height, width), in pixels


def shape_of(imgsz: ImageSize) -> tuple[int, int]:
    """Height and width in pixels."""
    return (imgsz, imgsz) if isinstance(imgsz, int) else imgsz


def rounded_up(imgsz: ImageSize, multiple: int) -> ImageSize:
    """Both sides rounded up to a multiple, such as the largest stride."""
    height, width = (math.ceil(side / multiple) * multiple for side in shape_of(imgsz))
    return height if height == width else (height, width)


def size_text(imgsz: ImageSize) -> str:
    """As users write it: `640`, or `512x2048`, the height first."""
    return str(imgsz) if isinstance(imgsz, int) else "{}x{}".format(*imgsz)


def parse_size(value: object) -> object:
    """The ImageSize that a text such as `512x2048` or a list of two whole numbers says; any other value as it is."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+)\s*[xX]\s*(\d+)\s*", value)):
        value = tuple(map(int, match.groups()))
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(side) is int for side in value):
        height, width = value
        return height if height == width else (height, width)
    return value
