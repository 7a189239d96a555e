"""Boxes drawn onto images: for the report, `predict` and TensorBoard.

Shapes: H W pixels, n boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

# Okabe and Ito, "Color Universal Design" (2008): told apart with any kind of colour vision. RGB.
PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
# Families with Chinese, Japanese and Korean letters that systems come with; matplotlib's own font has none.
_WIDE_FAMILIES = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS",
)  # fmt: skip


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
        cv2.rectangle(drawn, top_left, bottom_right, _colour(int(labels[row])), line)

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


def _colour(label: int) -> tuple[int, int, int]:
    return PALETTE[label % len(PALETTE)]


@lru_cache(maxsize=512)
def _tag(name: str, label: int, score: str, letters: int) -> np.ndarray | None:
    """Name and score on the class's colour, uint8 RGB; None where letters of this size cannot be read.

    A name that no font here has letters for becomes the class's number.
    """
    if letters < 6:
        return None
    font = _font(any(ord(character) >= 0x2E80 for character in name))
    font.set_size(letters, 72)  # at 72 dots per inch a point is a pixel
    known = font.get_charmap()
    readable = all(ord(character) in known for character in name)
    font.set_text((name if readable else f"class {label}") + score, 0.0)
    font.draw_glyphs_to_bitmap(antialiased=True)
    ink = np.asarray(font.get_image(), np.float32)[..., None] / 255
    margin = max(1, letters // 6)
    ink = np.pad(ink, ((margin, margin), (margin, margin), (0, 0)))
    background = np.array(_colour(label), np.float32)
    foreground = 0.0 if background @ (0.299, 0.587, 0.114) > 100 else 255.0
    return np.rint(background * (1 - ink) + foreground * ink).astype(np.uint8)


@lru_cache(maxsize=2)
def _font(wide: bool) -> FT2Font:
    """The font that comes with matplotlib, or for wide letters the first of the system's that has them."""
    import matplotlib  # takes half a second, which the first step of a run needn't wait for
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    if wide:
        installed = {font.name: font.fname for font in font_manager.fontManager.ttflist}
        for family in _WIDE_FAMILIES:
            if family in installed:
                return FT2Font(installed[family])
    return FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"))
