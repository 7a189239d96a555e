"""The page of one run or several, at any moment of theirs: `yoloyard watch` and `yoloyard runs compare`."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from yoloyard.common.run_folder import RunFolder, alert_line, names_of
from yoloyard.evaluation.report import plots
from yoloyard.evaluation.report.page import Image, Row, render_page

ALERTS_SHOWN = 50  # of a run, the last ones
FACTS = ("model", "data", "epochs", "batch", "imgsz", "optimizer", "lr0", "device")


def curves(runs: Sequence[RunFolder]) -> dict[str, Markup]:
    """The curves of a run, or of several over each other, as SVG by their titles. It takes about a second."""
    if len(runs) == 1:
        figures = plots.training_curves(runs[0].records)
    else:
        figures = plots.compared_curves(dict(zip(names_of(runs), (run.records for run in runs), strict=True)))
    return {title: Markup(plots.figure_svg(figure)) for title, figure in figures.items()}


def runs_page(
    runs: Sequence[RunFolder],
    figures: Mapping[str, Markup],
    settings: Mapping[str, Sequence[Any]],
    classes: Sequence[Mapping[str, Any]],
    refresh_seconds: float = 0,
) -> str:
    """The page as HTML, whole in itself.

    `figures` are those of `curves`. `settings` that differ have a value for each run; `classes` have a `name`, and for
    each run `map50_95` and `map50`. With `refresh_seconds` the page asks its server for a new one that often.
    """
    facts = {name: runs[0].settings[name] for name in FACTS if name in runs[0].settings} if len(runs) == 1 else {}
    names = names_of(runs)
    named = list(zip(names, runs, strict=True))
    return render_page(
        "runs.html.j2",
        title=", ".join(names),
        names=names,
        runs=[(name, run, run.texts()) for name, run in named],
        facts=facts,
        alerts={name: [alert_line(each) for each in run.alerts[-ALERTS_SHOWN:]] for name, run in named if run.alerts},
        problems=[f"{name}: {problem}" for name, run in named for problem in run.problems],
        curves=figures,
        settings=settings,
        classes=classes,
        predictions=[row for name, run in named for row in _predictions(name, run)],
        refresh_seconds=refresh_seconds,
    )


def _predictions(name: str, run: RunFolder) -> list[Row]:
    """The images of the run's last validation, two in a row."""
    found = run.validation
    images = [
        Image(f"data:image/jpeg;base64,{image['jpeg']}", image["width"], image["height"], f"{image['file']}: found")
        for image in found.get("images", ())
    ]
    text = f"epoch {found.get('images_epoch')}"
    return [Row(text, images[start : start + 2], name) for start in range(0, len(images), 2)]
