"""The command `export`."""

from typing import Annotated, Any

from cyclopts import Parameter

from yoloyard.cli.flags import Json, given, print_json, stdout_for_json, takes_settings
from yoloyard.common.errors import UsageError, UserError
from yoloyard.config.settings import ExportConfig


@takes_settings(ExportConfig, weights="model")
def export(
    file: Annotated[str | None, Parameter(help="the same as --weights")] = None,
    /,
    *,
    json: Json = False,
    **flags: Any,
) -> None:
    """Write a weights file as files for other runtimes, and compare them with it."""
    from rich.console import Console
    from rich.table import Table

    from yoloyard.config.overrides import with_overrides
    from yoloyard.export.export import export as run

    overrides = given(flags)
    if file is not None and "weights" in overrides:
        raise UsageError(f"two weights files are named, {file} and {overrides['weights']}: leave one out")
    config = with_overrides(ExportConfig(), overrides if file is None else {**overrides, "weights": file})
    with stdout_for_json(json):
        done = run(config)
    if json:
        print_json(done.as_dict())
    else:
        table = Table("target", "file", "beside the weights")
        for row in done.parity.document["files"]:
            table.add_row(row["target"], row["file"], row["result"])
        Console().print(table)
        print(f"files: {done.folder}\nreport: {done.parity.page}")
    if done.parity.failures:
        raise UserError(f"not all files find what the weights find: {'; '.join(done.parity.failures)}")
