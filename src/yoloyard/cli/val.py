"""The command `val`."""

from typing import Any

from yoloyard.cli.flags import Json, given, print_json, stdout_for_json, takes_settings
from yoloyard.config.settings import ValConfig


@takes_settings(ValConfig, weights="model")
def val(*, json: Json = False, **flags: Any) -> None:
    """Measure a weights file on a data set and write a report."""
    from rich.console import Console
    from rich.table import Table

    from yoloyard.commands.val import validate

    with stdout_for_json(json):
        found = validate(**given(flags))
    if json:
        print_json(found.as_dict())
        return
    metrics = found.metrics
    table = Table("class", "images", "boxes", "precision", "recall", "mAP50", "mAP50-95")
    overall = (metrics.precision, metrics.recall, metrics.map50, metrics.map50_95)
    boxes = sum(row.boxes for row in metrics.classes)
    table.add_row("all", "", str(boxes), *(f"{value:.4f}" for value in overall), style="bold")
    for row in metrics.classes:
        figures = (row.precision, row.recall, row.map50, row.map50_95)
        table.add_row(row.name, str(row.images), str(row.boxes), *(f"{value:.4f}" for value in figures))
    Console().print(table)
    print(f"report: {found.report}")
