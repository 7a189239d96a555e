"""Everything that is wrong with a data set, found without training: a list of problems, statistics and a page."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from yoloyard.common.errors import UserError
from yoloyard.common.files import new_run_folder
from yoloyard.common.versions import versions
from yoloyard.data.audit.duplicates import duplicate_problem, find_duplicates
from yoloyard.data.audit.problems import Problem
from yoloyard.data.formats.data_yaml import DataSpec, read_data_yaml
from yoloyard.data.formats.labels import decoded
from yoloyard.data.index.index import Index, image_facts_folder, read_split, require_boxes
from yoloyard.evaluation.report.check_page import class_rows, write_check_page

__all__ = ["FIRST_SHOWN", "Check", "check_data", "class_rows"]

FIRST_SHOWN = 3  # problems of a kind on the console; the page has all


@dataclass(frozen=True)
class Check:
    """What `check_data` found."""

    indexes: dict[str, Index]  # the splits whose images were found
    problems: dict[str, list[Problem]]  # of every split of the data.yaml
    page: Path

    @property
    def errors(self) -> int:
        """How many problems are errors and not warnings."""
        return sum(problem.is_error for each in self.problems.values() for problem in each)


def check_data(
    data: str | Path,
    project: str | Path = "runs",
    name: str = "check",
) -> Check:
    """Look at all splits of a data.yaml and write `check.html` into a new run folder. The data are only read.

    A split that is broken as a whole is a problem like others. Raises UsageError if the data.yaml itself is wrong.
    """
    spec = read_data_yaml(data)
    indexes: dict[str, Index] = {}
    problems: dict[str, list[Problem]] = {}
    for split in spec.splits:
        problems[split] = []
        try:
            indexes[split] = read_split(spec, split)
            problems[split] += indexes[split].problems
            if split != "test" or len(indexes[split].boxes):  # often without labels, to be labelled by others
                require_boxes(indexes[split], spec, split)
        except UserError as error:
            what = str(error).removeprefix(f"{spec.path}: ")
            problems[split].insert(0, Problem("split unusable", _line_of(spec, split), what))
    pairs = []
    for first, second in combinations(indexes, 2):
        one, other = indexes[first].paths, indexes[second].paths
        for duplicate in find_duplicates(one, other, image_facts_folder()):
            problems[second].append(duplicate_problem(duplicate, one, other, first))
            if one[duplicate.first] != other[duplicate.second]:
                pairs.append((other[duplicate.second], one[duplicate.first], duplicate.how))
    folder = new_run_folder(Path(project), name)
    facts = {
        "Data": spec.path,
        "Classes": len(spec.names),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    page = folder / "check.html"
    write_check_page(page, f"Check of {spec.path.name}", indexes, problems, pairs, facts)
    return Check(indexes, problems, page)


def _line_of(spec: DataSpec, split: str) -> str:
    """The data.yaml's path with the line that names the split."""
    lines = decoded(spec.path.read_bytes()).splitlines()
    number = next((number for number, line in enumerate(lines, 1) if line.startswith(f"{split}:")), None)
    return f"{spec.path}:{number}" if number else str(spec.path)
