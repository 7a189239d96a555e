"""The commands for runs that are there: `runs`, `runs show`, `runs compare` and `watch`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from yoloyard.cli.flags import Json, Name, Project, print_json, stdout_for_json

runs_app = cyclopts.App(name="runs")

_Run = Annotated[str, Parameter(help="the name of a run, or its folder")]
_Port = cyclopts.validators.Number(gte=1, lte=65535)
STYLES = {"running": "green", "interrupted": "yellow", "failed": "bold red", "diverged": "bold red"}


@runs_app.default
def runs(*, project: Project = Path("runs"), json: Json = False) -> None:
    """List the runs of a project with their state, the one that was started last at the end."""
    from yoloyard.commands.runs import document, list_runs
    from yoloyard.common.errors import printable

    with stdout_for_json(json):
        found = list_runs(project)
    if json:
        print_json({"project": project, "runs": [document(run) for run in found]})
        return
    if not found:
        print(f"no run is in {project}/")
        return
    print_table(["run", *found[0].texts()], *([run.name, *run.texts().values()] for run in found))
    for run in found:
        if run.state != "finished":
            print(printable(f"{run.name}: {run.state}: {run.reason}"))


@runs_app.command(name="show")
def runs_show(run: _Run, /, *, project: Project = Path("runs"), json: Json = False) -> None:
    """Show what is known of a run: state, figures, alerts, files, how to go on."""
    import shlex

    from yoloyard.commands.runs import document, find_run
    from yoloyard.jobs.bill import rows as bill_rows

    with stdout_for_json(json):
        found = find_run(run, project)
    facts = document(found, is_whole=True)
    if json:
        print_json(facts)
        return
    rows = {"folder": facts["folder"]} | found.texts() | {"what says so": found.reason}
    rows |= {"started": facts["started"], "last written": facts["updated"]}
    rows |= {name: found.settings.get(name) for name in ("model", "data", "best_by", "batch", "imgsz")}
    rows |= {"weights": ", ".join(map(str, facts["weights"])), "report": facts["report"]}
    rows |= bill_rows(facts["bill"]) | {"alerts": "\n".join(found.alerts)}
    if found.state not in ("running", "finished") and any(found.folder.glob("checkpoints/*/state.json")):
        rows["go on with"] = f"yoloyard train --resume {shlex.quote(str(found.folder))}"
    print_table([found.name, ""], *([name, str(value)] for name, value in rows.items() if value))


@runs_app.command(name="compare")
def runs_compare(*runs: _Run, project: Project = Path("runs"), name: Name = "compare", json: Json = False) -> None:
    """Compare runs on a page: settings that differ, curves, figures of each class."""
    from yoloyard.commands.runs import compare
    from yoloyard.common.run_folder import names_of

    with stdout_for_json(json):
        found, facts = compare(runs, project, name)
    if json:
        print_json(facts)
        return
    states = zip(found[0].texts(), *(run.texts().values() for run in found), strict=True)
    print_table(["", *names_of(found)], *states, *([name, *map(str, row)] for name, row in facts["settings"].items()))
    print(f"curves and classes: {facts['report']}")


def watch(
    *runs: Annotated[str, Parameter(help="names, folders or backup addresses of runs; default: the newest run")],
    project: Project = Path("runs"),
    port: Annotated[int, Parameter(help="where the page is on 127.0.0.1", validator=_Port)] = 6080,
) -> None:
    """Show runs that are still going on a page in the browser, until Ctrl-C.

    Several runs lie over each other.
    """
    from yoloyard.commands.watch import watch as serve

    serve(runs, project, port)


def print_table(*lines: Sequence[str], piped_width: int | None = None) -> None:
    """Print lines of cells, the first one as headings, without empty columns; what is too wide is broken.

    `piped_width`: columns where stdout is no terminal (default: COLUMNS or 80).
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from yoloyard.common.errors import printable

    def cell(text: str) -> Text:
        return Text("\n".join(map(printable, text.splitlines())), STYLES.get(text, ""), overflow="fold")

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    columns = [column for column in zip(*lines, strict=True) if any(column[1:])]
    for column in columns:
        longest = max(len(word) for text in column for word in text.split() or [""])
        table.add_column(cell(column[0]), min_width=min(longest, 12))
    for line in list(zip(*columns, strict=True))[1:]:
        table.add_row(*map(cell, line))
    Console(width=None if sys.stdout.isatty() else piped_width).print(table)
