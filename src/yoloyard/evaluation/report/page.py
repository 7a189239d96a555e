"""Pages of results from Jinja2 templates: readable in light and dark, on a phone, and on paper.

A page needs no other file: figures are inline SVG, images data URIs, style and script are in the page. Names given by a
user are escaped. Shapes: H W pixels.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from yoloyard.common.files import write_whole_text
from yoloyard.data.index.index import Index
from yoloyard.data.pixels.decode import encode_jpeg
from yoloyard.evaluation.report import plots
from yoloyard.evaluation.report.drawing import draw_boxes, shrunk

JPEG_QUALITY = 82


@dataclass(frozen=True)
class Image:
    """An image of a page, or `error`: why it can't be shown."""

    source: str = ""  # a data URI
    width: int = 0  # pixels
    height: int = 0
    alt: str = ""
    error: str = ""


@dataclass(frozen=True)
class Row:
    """Images under a caption, two beside each other."""

    text: str
    images: Sequence[Image]
    name: str = ""
    lines: Sequence[str] = ()


def write_page(path: Path, template: str, **values: object) -> None:
    """Write the page of `templates/{template}` to `path`, whole or not at all.

    Raises UserError if the file can't be written.
    """
    write_whole_text(path, render_page(template, **values))


def render_page(template: str, **values: object) -> str:
    """The page of `templates/{template}` as HTML."""
    return _templates().get_template(template).render(values)


def embedded(pixels: np.ndarray, file_name: str, what: str) -> Image:
    """Pixels, uint8 RGB (H, W, 3), as a JPEG inside the page; `what` they show of the file."""
    source = base64.b64encode(encode_jpeg(pixels, JPEG_QUALITY)).decode("ascii")
    height, width = pixels.shape[:2]
    return Image(f"data:image/jpeg;base64,{source}", width, height, f"{file_name}: {what}")


def labelled(pixels: np.ndarray, index: Index, position: int, side: int) -> Image:
    """The pixels (H, W, 3) of the image at `position` with its labels, the longer side at most `side` pixels."""
    small, scale = shrunk(pixels, side)
    boxes, labels, ignore = index.annotations(position)
    names = [*index.names, "ignored"]
    drawn = draw_boxes(small, boxes * scale, np.where(ignore, len(index.names), labels), names)
    return embedded(drawn, index.paths[position].name, "labels")


def svg(figure: Figure | Markup) -> Markup:
    """The figure, drawn or to be drawn, as an `<svg>` element; matplotlib has escaped what users named."""
    return figure if isinstance(figure, Markup) else Markup(plots.figure_svg(figure))


def counted(number: int, one: str, several: str) -> str:
    """The number with its noun."""
    return f"{number:,} {one if number == 1 else several}"


@cache
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=lambda name: name is not None and name.endswith(".j2"),  # not style and script
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters |= {
        "svg": svg,
        "counted": counted,
        "figure": lambda value, boxes=1: f"{value:.3f}" if boxes else "-",
    }
    return templates
