"""Everything that is wrong with a data set: a list of problems, statistics and a page."""

from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from yoloyard.common.errors import UserError
from yoloyard.common.files import new_run_folder
from yoloyard.common.image_size import size_text
from yoloyard.common.lineage import data_name
from yoloyard.common.versions import versions
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.data.audit.duplicates import duplicate_problem, find_duplicates, state_of
from yoloyard.data.audit.problems import Problem
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.formats.labels import decoded
from yoloyard.data.index.index import Index, read_split, require_boxes
from yoloyard.evaluation.report.check_page import class_rows, write_check_page
from yoloyard.training.setup.anchors import fit_anchors
from yoloyard.training.setup.matching_report import COLUMNS, MatchingReport, matching_report
from yoloyard.training.setup.starting_point import StartingPoint, build_detector, starting_point

MAX_PROBLEMS_SHOWN = 3  # of a kind on the console; the page has all
MAX_BOXES_SHOWN = 100  # without a place, on the page
PLACES = ("no place", "1 to 3 places", "4 to 9", "10 and more")
CLASS_COLUMNS = ("name", "images", "boxes", "small", "medium", "large")


@dataclass(frozen=True)
class Check:
    """The splits of a data set, and what is wrong with them."""

    data: Path
    indexes: dict[str, Index]  # the splits whose images were found
    problems: dict[str, list[Problem]]  # of every split of the data.yaml
    page: Path
    matching: MatchingReport | None = None  # of the training boxes

    @property
    def errors(self) -> int:
        """How many problems are errors and not warnings."""
        return sum(problem.is_error for each in self.problems.values() for problem in each)

    @property
    def warnings(self) -> int:
        """How many problems are warnings."""
        return sum(map(len, self.problems.values())) - self.errors

    def as_dict(self) -> dict[str, Any]:
        """The document of `yoloyard data check --json` (docs/json.md)."""
        return {
            "data": self.data,
            "errors": self.errors,
            "warnings": self.warnings,
            "splits": [
                {
                    "split": split,
                    "images": len(index),
                    "skipped": index.skipped,
                    "ignored_boxes": int(index.ignore.sum()),
                    "classes": [dict(zip(CLASS_COLUMNS, row, strict=True)) for row in class_rows(index)],
                }
                for split, index in self.indexes.items()
            ],
            "problems": [
                {"split": split, "is_error": problem.is_error, **asdict(problem)}
                for split, problems in self.problems.items()
                for problem in problems
            ],
            "matching": self.matching and self.matching.as_dict(),
            "report": self.page,
        }


def check_data(data: str | Path, project: str | Path = "runs", name: str = "check", **network: Any) -> Check:
    """Check all splits of a data.yaml and write `check.html` into a new run folder. The data are only read.

    `network` may hold `model` and `imgsz` as `train` takes them: how boxes match its maps is part of the page. A split
    that can't be used at all is a problem like others. Raises UsageError if the data.yaml itself or `network` is wrong.
    """
    config = with_overrides(TrainConfig(), network)
    start = starting_point({"model": config.model})
    spec = read_data_yaml(data)
    indexes: dict[str, Index] = {}
    problems: dict[str, list[Problem]] = {}
    for split in spec.splits:
        problems[split] = []
        try:
            own = spec.with_pixels(indexes["train"].pixels, "train") if "train" in indexes else spec
            indexes[split] = read_split(own, split)
            problems[split] += indexes[split].problems
            if split != "test" or len(indexes[split].boxes):  # often without labels, to be labelled by others
                require_boxes(indexes[split], spec, split)
        except UserError as error:
            lines = enumerate(decoded(spec.path.read_bytes()).splitlines(), 1)
            line = next((f":{number}" for number, line in lines if line.startswith(f"{split}:")), "")
            what = str(error).removeprefix(f"{spec.path}: ")
            problems[split].insert(0, Problem("split unusable", f"{spec.path}{line}", what))
    pairs = []
    for first, second in combinations(indexes, 2):
        one, other = indexes[first].paths, indexes[second].paths
        for duplicate in find_duplicates(one, other, state_of(indexes[first], indexes[second]), spec.pixels.files):
            problems[second].append(duplicate_problem(duplicate, one, other, first))
            if one[duplicate.first] != other[duplicate.second]:
                pairs.append(((indexes[second], duplicate.second), (indexes[first], duplicate.first), duplicate.how))
    matching = _matching(start, config, indexes["train"]) if "train" in indexes else None
    folder = new_run_folder(Path(project), name)
    facts = {
        "Data": spec.path,
        "Classes": len(spec.names),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    page = folder / "check.html"
    write_check_page(page, f"Check of {data_name(str(spec.path))}", indexes, problems, pairs, facts, _section(matching))
    return Check(spec.path, indexes, problems, page, matching)


def _matching(start: StartingPoint, config: TrainConfig, train: Index) -> MatchingReport | None:
    """How the boxes match the network that a training with `config` would begin with."""
    detector = build_detector(
        start.model, start.custom, start.arguments(len(train.names), channels=train.pixels.channels)
    )
    head, imgsz = detector.head, detector.input_size(config.imgsz)
    if "anchors" in head.constants:
        if "head.anchors" in start.state:
            head.get_buffer("anchors").copy_(start.state["head.anchors"])
        fit_anchors(head, train, imgsz, config.loss.anchor_t, config.seed)
    return matching_report(head, start.model, train, imgsz, config.loss.anchor_t)


def _section(matching: MatchingReport | None) -> tuple[list[str], list[list[str]], list[str]]:
    """What the page shows of it: a title of each column, rows, and lines."""
    if matching is None:
        return [], [], []
    heads = [f"{matching.model}, {size_text(matching.imgsz)} pixels", "boxes", *PLACES]
    rows = [
        [name, f"{columns['boxes']:,.0f}", *(f"{columns[each]:.1%}" for each in COLUMNS[1:])]
        for name, columns in matching.table().items()
    ]
    named = [
        f"{box['width']:g}x{box['height']:g} pixels of the input, {box['class']}, {box['image']}"
        for box in matching.boxes_without(MAX_BOXES_SHOWN)
    ]
    more = [f"and {matching.num_without - len(named):,} more: --json lists all"] * (matching.num_without > len(named))
    return heads, rows, [*matching.lines()[:1], *named, *more]
