"""The commands for runs that are there: `runs`, `runs show`, `runs compare` and `watch`."""

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
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from yoloyard.commands.runs import list_runs
    from yoloyard.common.errors import printable

    with stdout_for_json(json):
        found = list_runs(project)
    if json:
        print_json({"project": project, "runs": [run.as_dict() for run in found]})
        return
    all_columns = ("state", "epoch", "best", "time", "size", "backup", "alerts")
    rows = {run.name: run.texts() for run in found}
    columns = [column for column in all_columns if any(texts[column] for texts in rows.values())]
    table = Table("run", *("best (epoch)" if column == "best" else column for column in columns))
    for name, texts in rows.items():
        cells = (Text(texts[column], STYLES.get(texts[column], ""), overflow="fold") for column in columns)
        table.add_row(Text(name, overflow="fold"), *cells)
    Console().print(table if found else f"no run is in {project}/")
    for run in found:
        if run.state != "finished":
            print(printable(f"{run.name}: {run.state}: {run.reason}"))


@runs_app.command(name="show")
def runs_show(run: _Run, /, *, project: Project = Path("runs"), json: Json = False) -> None:
    """Show what is known of a run: state, figures, alerts, files, how to go on."""
    import shlex

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from yoloyard.commands.runs import details, find_run
    from yoloyard.common.errors import printable

    with stdout_for_json(json):
        found = find_run(run, project)
        document = details(found)
    if json:
        print_json(document)
        return
    table = Table(title=Text(found.name), show_header=False, title_justify="left")
    rows = {"folder": str(found.folder)} | found.texts() | {"what says so": printable(found.reason)}
    if best := document["best"]:
        rows["best"] = f"{best['figure']} {best['value']:.4f} in epoch {best['epoch']}"
    rows |= {"started": document["started"], "last written": document["updated"]}
    rows |= {name: str(document["settings"].get(name, "")) for name in ("model", "data", "batch", "imgsz")}
    rows |= {"weights": ", ".join(map(str, document["weights"])), "report": str(document["report"] or "")}
    rows |= {"alerts": "\n".join(map(printable, document["alerts"]))}
    if found.state not in ("running", "finished") and any(found.folder.glob("checkpoints/*/state.json")):
        rows["go on with"] = f"yoloyard train --resume {shlex.quote(str(found.folder))}"
    for name, value in rows.items():
        if value:
            table.add_row(name, Text(value, overflow="fold"))
    Console().print(table)


@runs_app.command(name="compare")
def runs_compare(*runs: _Run, project: Project = Path("runs"), name: Name = "compare", json: Json = False) -> None:
    """Compare runs on a page: settings that differ, curves, figures of each class."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from yoloyard.commands.runs import compare
    from yoloyard.common.run_folder import names_of

    with stdout_for_json(json):
        comparison = compare(runs, project, name)
    if json:
        print_json(comparison.as_dict())
        return
    table = Table("", *map(escape, names_of(comparison.runs)))
    texts = [run.texts() for run in comparison.runs]
    for row in ("state", "epoch", "best", "time"):
        table.add_row(row, *(Text(each[row]) for each in texts))
    table.add_section()
    for setting, values in comparison.settings.items():
        table.add_row(setting, *(Text(str(value), overflow="fold") for value in values))
    Console().print(table)
    print(f"curves and classes: {comparison.report}")


def watch(
    *runs: Annotated[str, Parameter(help="names of runs, or their folders; default: the run that was started last")],
    project: Project = Path("runs"),
    port: Annotated[int, Parameter(help="where the page is on 127.0.0.1", validator=_Port)] = 6080,
) -> None:
    """Show runs that are still going on a page in the browser, until Ctrl-C.

    Several runs lie over each other.
    """
    from yoloyard.commands.watch import watch as serve

    serve(runs, project, port)
