"""The report needs nothing but itself, shows what was asked for, and nothing in it is taken for markup."""

from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from evaluation_cases import detections, make_index

from yoloyard.common.errors import UserError
from yoloyard.common.structures import Detections
from yoloyard.data.audit.problems import Problem
from yoloyard.data.index.index import Index
from yoloyard.evaluation.metrics.coco import evaluate
from yoloyard.evaluation.report.report import write_report

NASTY = "<script>alert('x')</script> & \"$y$\""
BOX = (100.0, 100.0, 300.0, 300.0)
RECORDS = [
    {"epoch": epoch, "train/box": 2 / epoch, "train/cls": 3 / epoch, "val/map50": 0.1 * epoch, "lr/weights": 0.01}
    for epoch in (1, 2, 3)
]


class Page(HTMLParser):
    """The elements of a page, its text and what it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += data

    @property
    def headings(self) -> list[str]:
        return [part.split("</h2>")[0] for part in self.source.split("<h2>")[1:]]


def write(path: Path, index: Index, predictions: dict[int, Detections], **others: object) -> Page:
    options: dict = {"title": "run", "facts": {}, "commands": {}} | others
    write_report(path, metrics=evaluate(index, predictions), index=index, predictions=predictions, **options)
    return Page(path)


@pytest.fixture
def case(tmp_path: Path) -> tuple[Index, dict[int, Detections]]:
    """Two images on disk, one of them background with a false box; class and file names that look like markup."""
    paths = [tmp_path / "<b>first.png", tmp_path / "second&.png"]
    for path in paths:
        cv2.imwrite(str(path), np.full((480, 640, 3), 90, np.uint8))
    problem = Problem("label malformed", "a.txt:3", "<i>bad</i>")
    index = make_index([NASTY, "dent"], [([BOX], [0], [False]), ([], [], [])], paths, problems=[problem])
    return index, {0: detections((BOX, 0.9, 0)), 1: detections((BOX, 0.8, 1))}


def test_loads_nothing(tmp_path: Path, case: tuple[Index, dict[int, Detections]]) -> None:
    page = write(tmp_path / "report.html", *case, records=RECORDS)
    assert page.tags.count("img") == 4  # labels and found boxes of two images
    assert "svg" in page.tags
    assert not {"link", "iframe", "object", "embed"} & set(page.tags)
    assert all(address.startswith(("data:", "#")) for address in page.loads)
    assert "@import" not in page.source
    assert "url(http" not in page.source.replace(" ", "")


def test_what_users_named_is_text(tmp_path: Path, case: tuple[Index, dict[int, Detections]]) -> None:
    page = write(
        tmp_path / "report.html",
        *case,
        title=NASTY,
        facts={"Data": NASTY, "Model": NASTY},
        commands={"Validate": f"yoloyard val --data {NASTY!r}"},
    )
    assert page.tags.count("script") == 1  # the page's own
    assert "b" in page.tags
    assert "i" not in page.tags
    assert "<b>first.png" in page.text
    assert page.text.count(NASTY) >= 4
    assert "a.txt:3: <i>bad</i>" in page.text


def test_sections_of_a_run_and_of_a_validation(tmp_path: Path, case: tuple[Index, dict[int, Detections]]) -> None:
    commands = {"Validate": "yoloyard val --weights best.safetensors"}
    run = write(tmp_path / "run.html", *case, records=RECORDS, train_index=case[0], commands=commands)
    validation = write(tmp_path / "val.html", *case)
    assert "Training" in run.headings
    assert "Labels of the training set" in run.headings
    assert "yoloyard val --weights best.safetensors" in run.text
    assert "Training" not in validation.headings
    assert "Labels of the validation set" in validation.headings


def test_figures_are_those_of_the_evaluation(tmp_path: Path, case: tuple[Index, dict[int, Detections]]) -> None:
    page = write(tmp_path / "report.html", *case)
    assert "mAP50-951.000" in page.text
    assert "1 box found in 1 image without any" in page.text
    assert "1 right, 0 missed, 0 false" in page.text
    assert "0 right, 0 missed, 1 false" in page.text


def test_a_image_that_is_gone_is_named(tmp_path: Path, case: tuple[Index, dict[int, Detections]]) -> None:
    case[0].paths[0].unlink()
    page = write(tmp_path / "report.html", *case)
    assert page.tags.count("img") == 2
    assert f"cannot read the image {case[0].paths[0]}" in page.text


@pytest.mark.parametrize("num_classes", [1, 80])
def test_any_number_of_classes(tmp_path: Path, num_classes: int) -> None:
    labels = list(range(num_classes))
    index = make_index([f"kind {label}" for label in labels], [([BOX] * num_classes, labels, [False] * num_classes)])
    page = write(tmp_path / "report.html", index, {0: detections(*((BOX, 0.9, label) for label in labels))})
    assert all(f"kind {label}" in page.text for label in labels)


@pytest.mark.parametrize("images", [[], [([], [], [])]], ids=["no images", "no boxes"])
def test_nothing_to_show(tmp_path: Path, images: list) -> None:
    page = write(tmp_path / "report.html", make_index(["a"], images), {})
    assert "mAP50-950.000" in page.text


def test_a_folder_that_cannot_be_written(tmp_path: Path, case: tuple[Index, dict[int, Detections]]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "file" / "report.html", *case)
