"""The size that images are fitted into: one number of pixels for a square, or a height and a width."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

log = logging.getLogger(__name__)

ImageSize = int | tuple[int, int]  # a square's side, or (height, width), in pixels


def shape_of(imgsz: ImageSize) -> tuple[int, int]:
    """Height and width in pixels."""
    return (imgsz, imgsz) if isinstance(imgsz, int) else imgsz


def of_shape(shape: Sequence[int]) -> ImageSize:
    """The ImageSize of a height and a width in pixels."""
    height, width = shape
    return height if height == width else (height, width)


def of_metadata(metadata: Mapping[str, Any]) -> ImageSize:
    """The size that a weights file with this metadata is for: JSON has a list for a height and a width."""
    imgsz: ImageSize = parse_size(metadata.get("imgsz", 640))
    return imgsz


def rounded_up(imgsz: ImageSize, multiple: int) -> ImageSize:
    """Both sides rounded up to a multiple, such as the largest stride."""
    return of_shape([math.ceil(side / multiple) * multiple for side in shape_of(imgsz)])


def size_text(imgsz: ImageSize) -> str:
    """As users write it: `640`, or `512x2048`, the height first."""
    return str(imgsz) if isinstance(imgsz, int) else "{}x{}".format(*imgsz)


def parse_size(value: Any) -> Any:
    """The ImageSize that a text such as `512x2048`, or a list of two whole numbers, says; no other tuple is left."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+)\s*[xX]\s*(\d+)\s*", value)):
        value = tuple(map(int, match.groups()))
    if not isinstance(value, list | tuple):
        return value
    return of_shape(value) if len(value) == 2 and all(type(side) is int for side in value) else list(value)


def say_rounded(wanted: ImageSize, used: ImageSize, stride: int) -> None:
    """A line where the size that is used isn't the one that was wanted."""
    if used != wanted:
        log.info(f"imgsz {size_text(wanted)} is not a multiple of the stride {stride}: {size_text(used)} is used")
