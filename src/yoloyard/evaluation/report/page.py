"""What pages are built of, with their style and script: readable in light and dark, on a phone, and on paper.

A page needs nothing but itself: figures are inline SVG, images data URIs. H W pixels.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure

from yoloyard.data.pixels.decode import encode_jpeg
from yoloyard.evaluation.report import plots

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --soft: #5b6470; --line: #dde1e6;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --page: #101317; --card: #191d23; --ink: #e4e8ed; --soft: #9aa4b1; --line: #2c323b; --accent: #56b4e9; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei",
  sans-serif; }
header { padding: 1.4rem max(1rem, calc(50vw - 35rem)) 0; }
main { max-width: 72rem; margin: 0 auto; padding: 0 1rem 3rem; }
h1 { margin: 0 0 .5rem; font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { margin: 0 0 .8rem; font-size: 1.15rem; }
h3 { margin: 1rem 0 .3rem; font-size: .95rem; }
p { margin: 0 0 .8rem; color: var(--soft); font-size: .9rem; max-width: 46rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .9rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.2rem;
  margin-top: 1rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .7rem; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .8rem; display: flex;
  flex-direction: column; }
.tile span { font-size: .85rem; color: var(--soft); }
.tile b { font-size: 1.7rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile small { color: var(--soft); font-size: .78rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .6rem 1.2rem;
  margin: 1.1rem 0 0; }
dt { font-size: .8rem; color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1.2rem; }
.plots figure { max-width: 34rem; }
figure { margin: 0; }
figcaption { font-size: .9rem; margin-bottom: .3rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei",
  sans-serif !important; }
.wide { overflow-x: auto; }
.tall { max-height: 38rem; overflow: auto; }
.tall thead th { position: sticky; top: 0; background: var(--card); }
.matrix { max-width: none; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; font-weight: 500; }
thead th { border-bottom-width: 2px; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
th[aria-sort="ascending"] button::after { content: " \\2191"; }
th[aria-sort="descending"] button::after { content: " \\2193"; }
.tall + .plots { margin-top: 1.2rem; }
.pair { margin-top: 1.1rem; }
.pair div { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; max-width: 64rem; }
.pair b { margin-right: .6rem; }
img { width: 100%; height: auto; border-radius: 4px; display: block; }
ul { margin: 0; padding-left: 1.2rem; max-height: 20rem; overflow: auto; font-size: .88rem; }
li { overflow-wrap: anywhere; }
pre { margin: 0; padding: .6rem .8rem; background: var(--page); border: 1px solid var(--line); border-radius: 6px;
  overflow-x: auto; font-size: .85rem; }
@media (max-width: 40rem) {
  header { padding-top: 1rem; } h1 { font-size: 1.3rem; } section { padding: .9rem .8rem; }
  .tiles { grid-template-columns: 1fr 1fr; } .tile b { font-size: 1.4rem; } dl { grid-template-columns: 1fr 1fr; }
  .pair div { grid-template-columns: 1fr; }
  th, td { padding: .3rem .45rem; } }
@media print { nav { display: none; } section { break-inside: avoid; } ul, .tall { max-height: none; } }
"""

SCRIPT = """
for (const button of document.querySelectorAll(".sortable button")) {
  button.onclick = () => {
    const head = button.closest("th"), body = button.closest("table").tBodies[0];
    const column = head.cellIndex, down = column > 0 && head.getAttribute("aria-sort") !== "descending"
      || column === 0 && head.getAttribute("aria-sort") === "ascending";
    const text = (row) => row.cells[column].textContent, number = (row) => parseFloat(text(row));
    const compare = column === 0 ? (a, b) => text(a).localeCompare(text(b))
      : (a, b) => (isNaN(number(a)) ? -1 : number(a)) - (isNaN(number(b)) ? -1 : number(b));
    const rows = [...body.rows].sort(compare);
    body.append(...(down ? rows.reverse() : rows));
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  };
}
"""


def html_page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page: a heading, links, and a card a section of (heading, body); bodies are HTML already."""
    links = "".join(f'<a href="#part{i}">{escape(heading)}</a>' for i, (heading, _) in enumerate(sections))
    bodies = "".join(
        f'<section id="part{i}"><h2>{escape(heading)}</h2>{body}</section>'
        for i, (heading, body) in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1><nav>{links}</nav></header>\n<main>{bodies}</main>\n"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def number_tiles(values: Sequence[tuple[str, str, str]]) -> str:
    """Numbers in large letters: (name, value, note)."""
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(note)}</small></div>'
            for name, value, note in values
        )
        + "</div>"
    )


def facts_list(facts: Mapping[str, object]) -> str:
    """Short texts by their names."""
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts.items())
    return f"<dl>{rows}</dl>" if rows else ""


def sortable_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names the rows; a click on a heading sorts it."""
    head = "".join(f'<th><button type="button">{escape(name)}</button></th>' for name in heads)
    lines = (
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="tall"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def figures_grid(figures: Mapping[str, Figure]) -> str:
    """Figures by their titles, as SVG."""
    if not figures:
        return ""
    parts = (
        f"<figure><figcaption>{escape(title)}</figcaption>{plots.figure_svg(figure)}</figure>"
        for title, figure in figures.items()
    )
    return '<div class="plots">' + "".join(parts) + "</div>"


def image_element(image: np.ndarray, what: str, name: str) -> str:
    """An image, uint8 RGB (H, W, 3), as a JPEG inside the page; `what` it shows of the file `name`."""
    source = base64.b64encode(encode_jpeg(image, 82)).decode("ascii")
    height, width = image.shape[:2]
    alt = escape(f"{name}: {what}")
    return f'<img src="data:image/jpeg;base64,{source}" width="{width}" height="{height}" alt="{alt}" loading="lazy">'


def counted(number: int, one: str, several: str) -> str:
    """The number with its noun."""
    return f"{number:,} {one if number == 1 else several}"
