"""All benchmarks one after the other, and their results on one page: benchmarks/RESULTS.md.

    .venv-bench/bin/python benchmarks/run_all.py          all
    .venv-bench/bin/python benchmarks/run_all.py loss     those named
    .venv-bench/bin/python benchmarks/run_all.py --page   the page alone, from what was measured before

Nothing else should run on the machine meanwhile. What needs a GPU is in gpu.py, the long comparison in trees.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from side_by_side import HERE, RESULTS

BENCHMARKS = {
    "step": "The training step",
    "loss": "Loss and assignment alone",
    "samples": "Training samples",
    "validation": "Validation",
    "startup": "Start-up",
    "epoch": "A whole training from the command line",
    "fixed_time": "From a fixed wall time",
    "not_alone": "Training beside a busy process, ours alone",
    "two_processes": "Training in two processes, ours alone",
    "scaling": "Scaling, ours alone",
    "workers": "Threads or processes as workers, ours alone",
}
DEMO, TREES = Path("demo", "data.yaml"), Path("trees", "data.yaml")
BOTH_SETS: list[str | Path] = ["--demo", DEMO, "--trees", TREES]
FLAGS: dict[str, list[str | Path]] = {
    "validation": ["--data", TREES],
    "startup": ["--data", TREES],
    "epoch": BOTH_SETS,
    "fixed_time": BOTH_SETS,
    "workers": ["--data", TREES],
    "not_alone": ["--data", DEMO],
    "two_processes": ["--data", DEMO],
}
PAGE = HERE / "RESULTS.md"


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(unknown)}")
    for name in arguments.names or BENCHMARKS:
        if not arguments.page:
            print(f"== {name}: {BENCHMARKS[name]}", flush=True)
            command: list[Any] = [sys.executable, HERE / f"{name}.py", "--repeats", str(arguments.repeats)]
            subprocess.run([*command, "--reference-python", sys.executable, *FLAGS.get(name, [])], check=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"results: {PAGE}")


def page() -> str:
    """All that lies in `results/`, as one page."""
    parts = [
        "# Results",
        "Written by `make bench`; each part is one command, `python benchmarks/NAME.py`. Medians of turns A B A B, "
        "both sides in one environment with the same torch, NumPy and OpenCV; the reference is ultralytics 8.4, used "
        "through its public interface. A ratio is ours : theirs; a figure without brackets, in which the lowest and "
        "highest stand, was measured once.",
    ]
    for name, title in BENCHMARKS.items():
        file = RESULTS / f"{name}.json"
        if file.exists():
            parts.append(section(name, title, json.loads(file.read_text(encoding="utf-8"))))
    return "\n\n".join(parts) + "\n"


def section(name: str, title: str, facts: dict[str, Any]) -> str:
    """A benchmark's table, with machine and versions above it."""
    machine, versions = facts["machine"], facts["versions"]
    lines = [
        f"## {title} (`{name}.py`)",
        "",
        f"{facts['measured']}, {machine['processor']}, {machine['cores']} cores; "
        + ", ".join(f"{package} {version}" for package, version in versions.items()),
        "",
        "| what | ours | theirs | | ratio | wanted | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *map(table_row, facts["rows"])])


def table_row(row: dict[str, Any]) -> str:
    """A line of the table; a row without a reference has no ratio."""
    goal = "" if row["goal"] is None else f"{'≥' if row['more_is_better'] else '≤'} {row['goal']:g}"
    ours, theirs = figure(row["ours"]), figure(row["theirs"])
    ratio = "" if row["ratio"] is None else f"**{row['ratio']:.2f}**"
    return f"| {row['what']} | {ours} | {theirs} | {row['unit']} | {ratio} | {goal} | {row['note']} |"


def figure(turns: list[float]) -> str:
    """The median, and the lowest and highest where there were several turns."""
    if not turns:
        return ""
    median = plain(statistics.median(turns))
    return median if len(turns) == 1 else f"{median} ({plain(min(turns))} to {plain(max(turns))})"


def plain(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
