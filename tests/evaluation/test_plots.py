"""Plots fit a page in light and dark, keep names as they are, and leave matplotlib's global state alone."""

import json
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from evaluation_cases import detections, make_index, random_case

from yoloyard.evaluation.metrics.coco import evaluate
from yoloyard.evaluation.predictions import save_json
from yoloyard.evaluation.report import plots
from yoloyard.evaluation.report.drawing import draw_boxes


def test_svg_takes_the_pages_ink_and_keeps_names_as_text() -> None:
    index, predictions = random_case(num_images=8, num_classes=3, seed=7)
    before = dict(matplotlib.rcParams)
    svg = plots.figure_svg(plots.precision_recall(evaluate(index, predictions)))
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert ">class 0 " in svg
    assert dict(matplotlib.rcParams) == before


def test_names_in_any_script_and_with_formula_signs() -> None:
    index = make_index(["划痕", "5$ <b> $"], [([(0, 0, 9, 9), (20, 20, 40, 40)], [0, 1], [False, False])])
    svg = plots.figure_svg(plots.confusion_matrix(evaluate(index, {})))
    assert "划痕" in svg
    assert "5$ &lt;b&gt; $" in svg


def test_png_for_other_tools() -> None:
    index, _ = random_case(num_images=8, num_classes=3, seed=8)
    for figure in plots.label_statistics(index).values():
        image = cv2.imdecode(np.frombuffer(plots.figure_png(figure), np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        assert image.shape[1] > 300
        assert image.max() == 255


def test_training_curves_follow_the_records() -> None:
    records: list[dict] = [
        {"epoch": 1, "train/box": 2.0, "lr/a": 0.1, "lr/b": 0.1, "lr/c": 0.2},
        {"epoch": 2, "train/box": 1.0, "lr/a": 0.1, "lr/b": 0.1, "lr/c": 0.1, "val/map50": 0.5, "val/f1": None},
    ]
    curves = plots.training_curves(records)
    lines = {
        title: {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in figure.axes[0].lines}
        for title, figure in curves.items()
    }
    assert lines["Training losses"] == {"train/box": [[1, 2.0], [2, 1.0]]}
    assert lines["Validation figures"] == {"val/map50": [[2, 0.5]]}
    assert set(lines["Learning rate"]) == {"lr/a, lr/b", "lr/c"}
    assert plots.training_curves([]) == {}


def test_compared_curves_have_a_line_for_each_run_that_has_the_column() -> None:
    names = ["factory-with-a-rather-long-name-1", "factory-with-a-rather-long-name-2"]
    runs: dict[str, list[dict]] = {
        names[0]: [
            {"epoch": 1, "train/box": 2.0, "lr/weight": 0.1, "lr/bias": 0.2, "val/map50": 0.5, "speed/seconds": 9}
        ],
        names[1]: [{"epoch": 1, "train/box": None}, {"epoch": 2, "train/box": 1.0, "lr/weight": 0.2}],
    }
    curves = {
        title: [(str(line.get_label())[-6:], np.asarray(line.get_xydata()).tolist()) for line in figure.axes[0].lines]
        for title, figure in plots.compared_curves(runs).items()
    }
    assert curves == {
        "val/map50": [("name-1", [[1, 0.5]])],
        "train/box": [("name-1", [[1, 2.0]]), ("name-2", [[2, 1.0]])],
        "lr/weight": [("name-1", [[1, 0.1]]), ("name-2", [[2, 0.2]])],
    }


def test_twenty_lines_are_told_apart() -> None:
    runs = {f"run {number}": [{"epoch": 1, "val/map50": 0.5}, {"epoch": 2, "val/map50": 0.6}] for number in range(20)}
    (figure,) = plots.compared_curves(runs).values()
    assert len({(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}) == 20


@pytest.mark.parametrize("side", [32, 320, 4000])
def test_boxes_are_drawn_where_they_are(side: int) -> None:
    image = np.full((side, side, 3), 128, np.uint8)
    box = np.array([[0.25, 0.5, 0.75, 0.75]]) * side
    drawn = draw_boxes(image, box, np.array([0]), ["scratch"], np.array([0.9]))
    changed = (drawn != image).any(axis=2)
    rows, columns = np.nonzero(changed)
    line = max(2, side // 300)
    assert abs(columns.min() - side * 0.25) <= 2 * line
    assert abs(rows.max() - side * 0.75) <= 2 * line
    assert not changed[round(side * 0.65), round(side * 0.5)]  # the object itself stays visible
    assert (image == 128).all()


def test_a_crowd_of_tags_does_not_cover_itself_and_no_boxes_change_nothing() -> None:
    image = np.zeros((320, 320, 3), np.uint8)
    same_place = np.tile([50.0, 50.0, 200.0, 200.0], (50, 1))
    labels, scores = np.zeros(50, int), np.linspace(1, 0.3, 50)
    many = draw_boxes(image, same_place, labels, ["a"], scores)
    assert np.array_equal(many, draw_boxes(image, same_place[:1], labels[:1], ["a"], scores[:1]))
    assert np.array_equal(draw_boxes(image, same_place[:0], labels[:0], ["a"]), image)


def test_boxes_beyond_the_image_and_letters_without_a_font() -> None:
    image = np.zeros((100, 60, 3), np.uint8)
    drawn = draw_boxes(image, np.array([[-50.0, -50.0, 500.0, 500.0]]), np.array([3]), ["", "", "", "\U0001f6e0"])
    assert drawn.shape == image.shape
    assert drawn.any()


def test_predictions_as_coco_rows(tmp_path: Path) -> None:
    index = make_index(["a", "b"], [([], [], []), ([], [], [])])
    save_json(tmp_path / "predictions.json", index, {1: detections(((10, 20, 40, 60), 0.5, 1)), 0: detections()})
    assert json.loads((tmp_path / "predictions.json").read_text()) == [
        {"image_id": 1, "file_name": "001.jpg", "category_id": 1, "bbox": [10, 20, 30, 40], "score": 0.5}
    ]
