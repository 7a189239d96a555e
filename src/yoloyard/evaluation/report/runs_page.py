"""The page of one run or several, at any moment of theirs: `yoloyard watch` and `yoloyard runs compare`."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from yoloyard.common.run_folder import RunFolder, names_of
from yoloyard.evaluation.report import plots
from yoloyard.evaluation.report.page import Image, Row, render_page, svg

NOT_COMPARED = ("project", "name", "exist_ok")  # settings that differ in any case
FACTS = ("model", "data", "best_by", "batch", "imgsz", "optimizer", "lr0", "device", "backup")


def render(runs: Sequence[RunFolder], figures: Mapping[str, Markup], refresh_seconds: float = 0) -> str:
    """The page as HTML, whole in itself; `figures` are those of `curves`.

    With `refresh_seconds` the page asks its server for a new one that often.
    """
    names = names_of(runs)
    named = dict(zip(names, runs, strict=True))
    return render_page(
        "runs.html.j2",
        title=", ".join(names) if len(names) < 4 else f"{len(names)} runs",
        runs=named,
        facts={name: value for name in FACTS if (value := runs[0].settings.get(name))} if len(runs) == 1 else {},
        curves=figures,
        settings=differing_settings(runs),
        classes=classes_of(runs),
        predictions=[
            Row(f"epoch {found.get('images_epoch')}", [Image(**image) for image in found["images"]], name)
            for name, run in named.items()
            if (found := run.validation).get("images")
        ],
        refresh_seconds=refresh_seconds,
    )


def curves(runs: Sequence[RunFolder]) -> dict[str, Markup]:
    """The curves of a run, or of several over each other, as SVG by their titles. It takes about a second."""
    if len(runs) == 1:
        figures = plots.training_curves(runs[0].records)
    else:
        figures = plots.compared_curves(dict(zip(names_of(runs), (run.records for run in runs), strict=True)))
    return {title: svg(figure) for title, figure in figures.items()}


def differing_settings(runs: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, with the value of each; None where a run does not know it."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in NOT_COMPARED)
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def classes_of(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """The classes of all runs: `name`, and for each run `map50_95` and `map50`, None where it does not know the class.

    They are those of the run's last validation, or of its best weights if it is finished.
    """
    rows = [{row["name"]: row for row in run.validation.get("classes", ())} for run in runs]
    return [
        {"name": name}
        | {figure: [row[name][figure] if name in row else None for row in rows] for figure in ("map50_95", "map50")}
        for name in dict.fromkeys(name for each in rows for name in each)
    ]
