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
    if found.other is None:
        print(f"duplicates per image: {metrics.duplicates:.3f} (shown: {metrics.showing})")
    else:
        table = Table("suppression", "mAP50-95", "mAP50", "recall", "duplicates", "median score")
        table.title = f"recall, and duplicates per image, at confidence {metrics.showing.conf:g}"
        for each in (metrics, found.other):
            seen = (each.map50_95, each.map50, each.shown_recall, each.duplicates, each.median_score)
            name = f"{each.suppression} (used)" if each is metrics else each.suppression
            table.add_row(name, *(f"{value:.4f}" for value in seen))
        Console().print(table)
    print(f"report: {found.report}")
