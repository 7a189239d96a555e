"""Boxes drawn onto images: for the report, `predict` and TensorBoard.

Shapes: H W pixels, n boxes.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

MIN_LETTER_PIXELS = 6
# Okabe and Ito, "Color Universal Design" (2008): told apart with any kind of colour vision. RGB.
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
# Files of fonts with Chinese, Japanese and Korean letters that systems come with.
_WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "SourceHanSansSC-Regular.otf", "wqy-microhei.ttc",
    "wqy-zenhei.ttc", "msyh.ttc", "simhei.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf",
)  # fmt: skip
_NO_CHARACTER = "\uffff"  # every font shows its sign for a missing letter


def shrunk(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """The image (H, W, 3) with its longer side at most `side`, and the factor that it was scaled by."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scale


def draw_boxes(
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """A copy of `image`, uint8 RGB (H, W, 3), with boxes (n, 4) in its pixels and a tag of name and score at each.

    Lines and letters grow with the image. Where tags would cover each other, the one with the higher score (or of
    the larger box) is drawn, so that a crowded image stays readable.
    """
    drawn = np.ascontiguousarray(image).copy()
    height, width = image.shape[:2]
    line = max(2, round((height + width) / 700))
    corners = np.rint(np.asarray(boxes_xyxy, float)).reshape(-1, 4)
    corners = np.clip(corners, 0, [width - 1, height - 1] * 2).astype(int)
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    order = np.argsort(-(np.asarray(scores, float) if scores is not None else areas), kind="stable")

    for row in order[::-1]:
        top_left, bottom_right = corners[row, :2].tolist(), corners[row, 2:].tolist()
        cv2.rectangle(drawn, top_left, bottom_right, (0, 0, 0), line + 2 * (line // 2))
        cv2.rectangle(drawn, top_left, bottom_right, PALETTE[labels[row] % len(PALETTE)], line)

    letters = min(max(11, round((height + width) / 2 * 0.019)), height // 6)
    placed = np.zeros((0, 4), int)
    for row in order:
        label = int(labels[row])
        tag = _tag(names[label], label, "" if scores is None else f" {float(scores[row]):.2f}", letters)
        if tag is None or tag.shape[0] > height or tag.shape[1] > width:
            continue
        y = corners[row, 1] - tag.shape[0] if corners[row, 1] >= tag.shape[0] else corners[row, 1]
        x, y = min(corners[row, 0], width - tag.shape[1]), min(y, height - tag.shape[0])
        place = np.array([x, y, x + tag.shape[1], y + tag.shape[0]])
        if ((np.minimum(placed[:, 2:], place[2:]) - np.maximum(placed[:, :2], place[:2])).min(axis=1) > 0).any():
            continue
        drawn[place[1] : place[3], place[0] : place[2]] = tag
        placed = np.concatenate((placed, place[None]))
    return drawn


@lru_cache(maxsize=512)
def _tag(name: str, label: int, score: str, letters: int) -> np.ndarray | None:
    """Name and score on the class's colour, uint8 RGB; None where letters of this size cannot be read.

    A name that no font here has letters for becomes the class's number.
    """
    if letters < MIN_LETTER_PIXELS:
        return None
    from PIL import Image, ImageDraw

    fonts = _fonts(letters, any(ord(character) >= 0x2E80 for character in name))
    readable = next((font for font in fonts if _has_letters(font, name)), None)
    font, text = readable or fonts[0], (name if readable else f"class {label}") + score
    left, top, right, bottom = font.getbbox(text)
    margin = max(1, letters // 6)
    background = PALETTE[label % len(PALETTE)]
    foreground = (0, 0, 0) if np.dot(background, (0.299, 0.587, 0.114)) > 100 else (255, 255, 255)
    tag = Image.new("RGB", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin), background)
    ImageDraw.Draw(tag).text((margin - left, margin - top), text, foreground, font)
    return np.array(tag)


@lru_cache(maxsize=16)
def _fonts(letters: int, wide: bool) -> list[FreeTypeFont]:
    """The font that comes with matplotlib, and for wide letters those of `_WIDE_FONTS` that the system has."""
    from PIL import ImageFont

    package: Any = importlib.util.find_spec("matplotlib")  # which takes half a second to import
    own = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    fonts = [ImageFont.truetype(own, letters)]
    for name in _WIDE_FONTS if wide else ():
        with contextlib.suppress(OSError):  # it is not on this system
            fonts.append(ImageFont.truetype(name, letters))
    return fonts


def _has_letters(font: FreeTypeFont, text: str) -> bool:
    missing = bytes(font.getmask(_NO_CHARACTER))
    return all(character == _NO_CHARACTER or bytes(font.getmask(character)) != missing for character in set(text))
