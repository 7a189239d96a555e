"""The commands `doctor` and `doctor diff`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from yoloyard.cli.flags import SWITCH, Json, count_of, print_json

doctor_app = cyclopts.App(name="doctor", help_epilogue="Exits with 1 if there is a problem.")


@doctor_app.default
def doctor(
    *,
    folder: Annotated[Path, Parameter(help="the folder of data and runs; its disk is checked")] = Path("."),
    network: Annotated[
        str | None, Parameter(help="address of the object store (https://HOST or HOST:PORT); opens a connection to it")
    ] = None,
    python: Annotated[
        Path | None, Parameter(help="check the packages of this Python, not of the one that runs yoloyard")
    ] = None,
    quick: Annotated[bool, SWITCH, Parameter(help="measure no speed and compute nothing")] = False,
    json: Json = False,
) -> None:
    """Check driver, GPU, container, limits, disk and packages of this host, and say what fixes a problem."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from yoloyard.common.errors import UsageError
    from yoloyard.machines.doctor.run import examine

    if not folder.is_dir():
        raise UsageError(f"--folder {folder} is no folder")
    facts, findings = examine(folder, network, quick, python=python)
    styles = {"problem": "bold red", "warning": "yellow", "ok": "green", "skipped": "dim"}
    problems, warnings, ok, skipped = (sum(each.verdict == verdict for each in findings) for verdict in styles)
    if json:
        print_json({"facts": facts, "findings": [asdict(finding) for finding in findings]})
    else:
        console = Console()
        for finding in findings:
            console.print(Text.assemble((f"{finding.verdict:<9}", styles[finding.verdict]), (finding.title, "bold")))
            console.print(Padding(Text(finding.evidence), (0, 0, 0, 9)))
            if finding.remedy:
                console.print(Padding(Text(f"-> {finding.remedy}", style="cyan"), (0, 0, 0, 9)))
        counts = f"{count_of(problems, 'problem')}, {count_of(warnings, 'warning')}"
        console.print(f"{counts}, {ok} in order, {skipped} not looked at")
    if problems:
        sys.exit(1)


@doctor_app.command(name="diff", help_epilogue="")
def doctor_diff(
    run_a: Annotated[Path, Parameter(help="a run's folder, its environment.json, or what doctor --json printed")],
    run_b: Annotated[Path, Parameter(help="another one")],
    /,
    *,
    json: Json = False,
) -> None:
    """Compare two runs or hosts, the likeliest causes of other results first.

    Exits with 1 if something differs that decides results, or that keeps the two from training together.
    """
    from yoloyard.machines.doctor.diff import compare, load

    comparison = compare(load(run_a), load(run_b))
    if json:
        print_json(comparison.as_dict())
    else:
        print("\n".join(comparison.lines()))
    if comparison.decides:
        sys.exit(1)
