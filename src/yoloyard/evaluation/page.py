"""Style and script of the report: readable in light and dark, on a laptop and a phone, and on paper."""

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
