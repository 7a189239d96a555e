"""What `yoloyard runs` shows of the runs of a project, of one run, and of several beside each other."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yoloyard.common.errors import UsageError
from yoloyard.common.files import new_run_folder, write_whole_text
from yoloyard.common.run_folder import RunFolder, find_runs, read_run
from yoloyard.config.overrides import unknown_name
from yoloyard.jobs.bill import bill

log = logging.getLogger(__name__)


def list_runs(project: Path) -> list[RunFolder]:
    """All runs of a project, the one that was started last at the end; logs what can't be read."""
    return [_logged(read_run(folder)) for folder in find_runs(project)]


def find_run(name: str, project: Path) -> RunFolder:
    """The run of that name in `project`, or in the folder `name`. Raises UsageError if there is none."""
    for folder in (project / name, Path(name)):
        if (folder / "config.yaml").is_file():
            return _logged(read_run(folder))
    names = [folder.name for folder in find_runs(project)]
    raise UsageError(f"{unknown_name(name, names, 'run')} in {project}/" if names else f"no run is in {project}/")


def document(run: RunFolder, is_whole: bool = False) -> dict[str, Any]:
    """What `--json` says of a run (docs/json.md); `is_whole`: of a single one, with its settings and files."""
    large = ("settings", "records", "problems", "validation")
    facts = {name: value for name, value in vars(run).items() if name not in large} | {"backup": run.backup or None}
    report = run.folder / "report.html"
    return facts if not is_whole else facts | {
        "settings": run.settings,
        "last": run.records[-1] if run.records else None,
        "weights": sorted(run.folder.glob("weights/[!.]*.safetensors")),
        "report": report if report.exists() else None,
        "bill": bill(run),
        "problems": run.problems,
    }  # fmt: skip


def compare(names: Sequence[str], project: Path, name: str) -> tuple[list[RunFolder], dict[str, Any]]:
    """Compare runs on a page in the new folder `project/name`; the runs, and what `--json` says (docs/json.md).

    Raises UsageError for fewer than two different runs.
    """
    runs = [find_run(each, project) for each in names]
    if len(runs) < 2 or len({run.folder.resolve() for run in runs}) < len(runs):
        raise UsageError("name two different runs or more: yoloyard runs compare NAME NAME")
    from yoloyard.evaluation.report import runs_page  # matplotlib takes half a second to import

    page = runs_page.render(runs, runs_page.curves(runs))
    report = new_run_folder(project, name) / "compare.html"
    write_whole_text(report, page)
    found = {"settings": runs_page.differing_settings(runs), "classes": runs_page.classes_of(runs), "report": report}
    return runs, {"runs": [document(run) for run in runs]} | found


def _logged(run: RunFolder) -> RunFolder:
    for problem in run.problems:
        log.warning(f"{run.folder}: {problem}")
    return run
