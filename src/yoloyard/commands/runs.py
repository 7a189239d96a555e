"""What `yoloyard runs` shows of the runs of a project, of one run, and of several beside each other."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yoloyard.common.errors import UsageError
from yoloyard.common.files import new_run_folder, write_whole_text
from yoloyard.common.run_folder import RunFolder, alert_line, find_runs, read_run
from yoloyard.config.overrides import unknown_name

log = logging.getLogger(__name__)

NOT_COMPARED = ("project", "name", "exist_ok")  # settings that differ in any case


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other, and the page that shows them."""

    runs: Sequence[RunFolder]
    settings: dict[str, list[Any]]  # by name, those that differ; a value for each run
    classes: list[dict[str, Any]]  # name, and for each run map50_95 and map50, None where it doesn't know the class
    report: Path

    def as_dict(self) -> dict[str, Any]:
        """The document of `yoloyard runs compare --json` (docs/json.md)."""
        runs = [run.as_dict() for run in self.runs]
        return {"runs": runs, "settings": self.settings, "classes": self.classes, "report": self.report}


def list_runs(project: Path) -> list[RunFolder]:
    """All runs of a project, the one that was started last at the end; logs what can't be read."""
    return [_read(folder) for folder in find_runs(project)]


def find_run(name: str, project: Path) -> RunFolder:
    """The run of that name in `project`, or in the folder `name`. Raises UsageError if there is none."""
    for folder in (project / name, Path(name)):
        if (folder / "config.yaml").is_file():
            return _read(folder)
    names = [folder.name for folder in find_runs(project)]
    raise UsageError(f"{unknown_name(name, names, 'run')} in {project}/" if names else f"no run is in {project}/")


def details(run: RunFolder) -> dict[str, Any]:
    """The document of `yoloyard runs show NAME --json` (docs/json.md)."""
    weights = [path for path in (run.folder / "weights").glob("*.safetensors") if not path.name.startswith(".")]
    return run.as_dict() | {
        "host": run.status.get("host"),
        "pid": run.status.get("pid"),
        "seconds_left": run.seconds_left,
        "settings": run.settings,
        "last": run.records[-1] if run.records else None,
        "alerts": [alert_line(alert) for alert in run.alerts],
        "weights": sorted(weights),
        "report": path if (path := run.folder / "report.html").exists() else None,
        "problems": list(run.problems),
    }


def compare(names: Sequence[str], project: Path, name: str) -> Comparison:
    """Compare runs on a page in the new folder `project/name`. Raises UsageError for fewer than two different runs."""
    runs = [find_run(each, project) for each in names]
    if len(runs) < 2 or len({run.folder.resolve() for run in runs}) < len(runs):
        raise UsageError("name two different runs or more: yoloyard runs compare NAME NAME")
    from yoloyard.evaluation.report.runs_page import curves, runs_page  # matplotlib takes half a second to import

    report = new_run_folder(project, name) / "compare.html"
    comparison = Comparison(runs, differing_settings(runs), classes_of(runs), report)
    write_whole_text(report, runs_page(runs, curves(runs), comparison.settings, comparison.classes))
    return comparison


def differing_settings(runs: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, with the value of each; None where a run does not know it."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in NOT_COMPARED)
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def classes_of(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """The classes of all runs by name, with the figures of each run's last validation, or of its best weights."""
    rows = [{row["name"]: row for row in run.validation.get("classes", ())} for run in runs]
    return [
        {"name": name}
        | {figure: [row[name][figure] if name in row else None for row in rows] for figure in ("map50_95", "map50")}
        for name in dict.fromkeys(name for each in rows for name in each)
    ]


def _read(folder: Path) -> RunFolder:
    run = read_run(folder)
    for problem in run.problems:
        log.warning(f"{folder}: {problem}")
    return run
