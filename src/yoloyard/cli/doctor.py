"""`yoloyard doctor`: is this machine fit to train?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

doctor_app = cyclopts.App(name="doctor", help="Say whether this machine is fit to train, and what fixes it.")


def register(app: cyclopts.App) -> None:
    """Add `doctor` to the command line."""
    app.command(doctor_app)


@doctor_app.default
def doctor(
    *,
    folder: Annotated[Path, Parameter(help="where data and runs lie; its disk is looked at")] = Path("."),
    network: Annotated[
        str | None, Parameter(help="address of the object store (https://HOST or HOST:PORT); opens a connection to it")
    ] = None,
    python: Annotated[
        Path | None, Parameter(help="look at the packages of this Python, not at those that yoloyard runs with")
    ] = None,
    quick: Annotated[bool, Parameter(help="measure no speed and compute nothing", negative="")] = False,
    json_: Annotated[bool, Parameter(name="--json", help="print facts and findings as JSON", negative="")] = False,
) -> None:
    """Look at driver, GPU, container, limits, disk and packages; exits with 1 if there is a problem."""
    from yoloyard.common.errors import UsageError
    from yoloyard.machines.doctor.run import examine

    if not folder.is_dir():
        raise UsageError(f"--folder {folder} is no folder")
    examination = examine(folder, network, quick, python=python)
    if json_:
        print(json.dumps(examination.as_dict(), indent=1))
    else:
        _show(examination.findings)
    if examination.problems:
        sys.exit(1)


@doctor_app.command(name="diff")
def doctor_diff(
    run_a: Annotated[Path, Parameter(help="a run's folder, its environment.json, or what doctor --json printed")],
    run_b: Annotated[Path, Parameter(help="another one")],
    /,
) -> None:
    """Say in what two runs or machines differ, the likeliest causes of other results first.

    Exits with 1 if something differs that decides results, or that keeps the two from training together.
    """
    from yoloyard.machines.doctor.diff import compare, load

    comparison = compare(load(run_a), load(run_b))
    for line in comparison.lines():
        print(line)
    if comparison.decides:
        sys.exit(1)


def _show(findings: list) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console()
    styles = {"problem": "bold red", "warning": "yellow", "skipped": "dim", "ok": "green"}
    for finding in findings:
        console.print(Text.assemble((f"{finding.verdict:<9}", styles[finding.verdict]), (finding.title, "bold")))
        console.print(Padding(Text(finding.evidence), (0, 0, 0, 9)))
        if finding.remedy:
            console.print(Padding(Text(f"-> {finding.remedy}", style="cyan"), (0, 0, 0, 9)))
    counts = {verdict: sum(each.verdict == verdict for each in findings) for verdict in styles}
    plural = {verdict: "" if counts[verdict] == 1 else "s" for verdict in counts}
    console.print(
        f"{counts['problem']} problem{plural['problem']}, {counts['warning']} warning{plural['warning']}, "
        f"{counts['ok']} in order, {counts['skipped']} not looked at"
    )
