"""COCO JSON in place: where its images are, what its annotations mean, what is said of wrong ones."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yoloyard.common.errors import UserError
from yoloyard.common.structures import Detections
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import Index, load_index
from yoloyard.evaluation.metrics.coco import evaluate
from yoloyard.evaluation.predictions import save_json

CATEGORIES = [{"id": 90, "name": "dent"}, {"id": 3, "name": "big scratch"}, {"id": 7, "name": "crack"}]


def write_image(path: Path, width: int = 40, height: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


def image(number: float, name: str, **others: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": 40, "height": 30, **others}


def annotation(number: int, image_id: object, category: object, bbox: object, **others: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": bbox, **others}


def write(path: Path, images: list, annotations: list, categories: list = CATEGORIES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def load(folder: Path, text: str, split: str = "train") -> Index:
    (folder / "data.yaml").write_text(text)
    return load_index(read_data_yaml(folder / "data.yaml"), split)


def test_boxes_ids_and_classes_are_those_of_the_file(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "empty.png"):
        write_image(tmp_path / "images" / name)
    images = [image(100018, "b.png"), image(100017, "a.png"), image(5, "empty.png")]
    annotations = [
        annotation(1, 100018, 90, [1.1, 2.2, 3.3, 4.4]),
        annotation(2, 100017, 3, [0, 0, 40.2, 30]),  # within the tolerance: clipped
        annotation(3, 100018, 7, [0, 0, 10, 10], iscrowd=1, segmentation={"counts": "x", "size": [30, 40]}),
        annotation(4, 100018, 7, None, segmentation=[[1, 2, 5, 2, 5, 9], [20, 3, 22, 3, 22, 4]]),
    ]
    write(tmp_path / "instances.json", images, annotations)
    index = load(tmp_path, "train: instances.json\n")
    assert index.names == ("big scratch", "crack", "dent")  # in the order of their ids
    assert index.category_ids.tolist() == [3, 7, 90]
    assert index.source_ids.tolist() == [5, 100017, 100018]
    assert list(index.file_names) == ["empty.png", "a.png", "b.png"]
    assert [len(index.annotations(position)[1]) for position in range(3)] == [0, 1, 3]
    boxes, labels, ignore = index.annotations(2)
    assert boxes.tolist() == np.array([[1.1, 2.2, 4.4, 2.2 + 4.4], [0, 0, 10, 10], [1, 2, 22, 9]], np.float32).tolist()
    assert labels.tolist() == [2, 1, 1]
    assert ignore.tolist() == [False, True, False]
    assert index.annotations(1)[0].tolist() == [[0, 0, 40, 30]]
    assert index.problems == ()


def test_ids_may_be_written_as_floats(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    categories = [{"id": 2.0, "name": "dent"}, {"id": 1, "name": "crack"}]
    annotations = [annotation(1, 1.0, 2, [1, 1, 5, 5]), annotation(2, 1, 2.0, [2, 2, 5, 5])]
    write(tmp_path / "a.json", [image(1.0, "a.png")], annotations, categories)
    index = load(tmp_path, "train: a.json\n")
    assert (index.labels.tolist(), index.problems) == ([1, 1], ())
    assert (index.source_ids.tolist(), index.category_ids.tolist()) == ([1], [1, 2])


def test_names_of_the_data_yaml_win_and_are_found_by_name(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    write(tmp_path / "a.json", [image(1, "a.png")], [annotation(1, 1, 90, [1, 1, 5, 5])])
    index = load(tmp_path, "train: a.json\nnames: [dent, hole, big scratch]\n")
    assert index.labels.tolist() == [0]
    assert index.category_ids.tolist() == [90, 92, 3]  # the file has no hole: an id that it doesn't use


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/instances_train.json", "images"),
        ("train/_annotations.coco.json", "train"),
        ("labels.json", "images/train"),
        ("deep/er/annotations/x.json", "images"),
    ],
)
def test_images_are_found_where_they_usually_are(tmp_path: Path, file: str, images: str) -> None:
    write_image(tmp_path / images / "a b.png")
    write(tmp_path / file, [image(1, "gone.png"), image(2, "a b.png")], [annotation(1, 2, 3, [1, 1, 5, 5])])
    index = load(tmp_path, f"train: {file}\n")
    assert list(index.paths) == [tmp_path / images / "a b.png"]
    (problem,) = index.problems
    assert problem.kind == "image missing"
    assert (
        str(problem) == f"{tmp_path}/{file} image id 1: there is no image {tmp_path}/{images}/gone.png; image skipped"
    )


def test_the_folder_may_be_said_and_formats_may_be_mixed(tmp_path: Path) -> None:
    write_image(tmp_path / "far" / "a.png")
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    write(tmp_path / "a.json", [image(9, "a.png")], [annotation(1, 9, 90, [1, 1, 5, 5])])
    text = "train: [{images: far, labels: a.json}, images]\nval: a.json\nnames: [dent, crack]\n"
    index = load(tmp_path, text)
    assert list(index.paths) == [tmp_path / "far/a.png", tmp_path / "images/a.png"]
    assert index.labels.tolist() == [0, 1]
    assert index.source_ids.tolist() == [0, 1]  # of ids that not all images have, none is used
    assert index.category_ids.tolist() == [0, 1]


def test_where_images_were_looked_for_is_said(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [image(9, "a.png")], [])
    with pytest.raises(UserError, match=r"none of the 1 images .*a\.png was looked for in .*/images.*images: FOLDER"):
        load(tmp_path, "train: a.json\n")


def test_a_set_that_loses_all_its_boxes_by_their_ids_says_so(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    write(tmp_path / "a.json", [image(1, "a.png")], [annotation(1, [1], 3, [1, 1, 5, 5])])
    with pytest.raises(UserError, match=r"not a single label; .*first error: .* its image_id \[1\] is neither a whole"):
        load(tmp_path, "train: a.json\n")


WRONG = [
    (annotation(17, 1, 5, [1, 1, 5, 5]), "class unknown", "annotation id 17: category 5 is not one of the classes"),
    *(
        (annotation(17, 1, wrong, [1, 1, 5, 5]), "label malformed", f"its category_id {wrong!r} is not a whole number")
        for wrong in ("three", 3.5, [3], True, None)
    ),
    (annotation(17, 1, 3, [1, 1, -5, 5]), "box without area", "annotation id 17: the size -5 5 is negative"),
    (
        annotation(17, 1, 3, [1, 1, 45, 5]),
        "label outside the image",
        "the bbox 1 1 45 5 is outside the image of 40x",
    ),
    (annotation(17, 1, 3, [1, 1, 5]), "label malformed", "neither a bbox of 4 numbers nor a polygon"),
    (annotation(17, 1, 3, ["a", 1, 5, 5]), "label malformed", "neither a bbox of 4 numbers nor a polygon"),
    (annotation(17, 1, 3, [float("nan"), 1, 5, 5]), "label malformed", "neither a bbox of 4 numbers nor a polygon"),
    (
        annotation(17, 1, 3, [], segmentation={"counts": "x", "size": [30, 40]}),
        "label malformed",
        "neither a bbox of 4 numbers nor a polygon",
    ),
]


@pytest.mark.parametrize(("wrong", "kind", "what"), WRONG)
def test_a_wrong_annotation_makes_its_image_unusable(tmp_path: Path, wrong: dict, kind: str, what: str) -> None:
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png")
    good = annotation(16, 2, 3, [1, 1, 5, 5])
    write(tmp_path / "a.json", [image(1, "a.png"), image(2, "b.png")], [good, wrong])
    index = load(tmp_path, "train: a.json\n")
    assert list(index.paths) == [tmp_path / "b.png"]
    (problem,) = index.problems
    assert (problem.kind, problem.effect) == (kind, "image skipped")
    assert problem.where == f"{tmp_path}/a.json annotation id 17"
    assert what in str(problem)


def test_what_is_left_out_alone_is_named(tmp_path: Path) -> None:
    for name in ("a.png", "turned.png"):
        write_image(tmp_path / name)
    images = [image(1, "a.png"), image(2, "turned.png", width=30, height=40), image(3, "a.png"), {"id": 4}, "x"]
    annotations = [
        annotation(1, 1, 3, [1, 1, 5, 5]),
        annotation(2, 1, 3, [1, 1, 5, 5.0]),
        annotation(3, 1, 7, [1, 1, 5, 5]),
        annotation(4, 1, 3, [1, 1, 0, 5]),
        annotation(5, 99, 3, [1, 1, 5, 5]),
        *(annotation(6 + row, wrong, 3, [1, 1, 5, 5]) for row, wrong in enumerate(({}, 1.5, [1], True))),
        annotation(10, 3, 3, [1, 1, 5, 5]),  # of an image that is named already
        "x",
    ]
    file = write(tmp_path / "a.json", images, annotations)
    index = load(tmp_path, "train: a.json\n")
    assert index.labels.tolist() == [0, 1]
    assert [str(problem).removeprefix(f"{file} ") for problem in index.problems] == [
        "image id 3: image id 1 has the same file_name a.png; image skipped",
        "image id 4: it has no file_name; image skipped",
        "images[4]: it has no id; image skipped",
        "annotation id 5: image id 99 is not among its images; annotation left out",
        "annotation id 6: its image_id {} is neither a whole number nor a text; annotation left out",
        "annotation id 7: its image_id 1.5 is neither a whole number nor a text; annotation left out",
        "annotation id 8: its image_id [1] is neither a whole number nor a text; annotation left out",
        "annotation id 9: its image_id True is neither a whole number nor a text; annotation left out",
        "annotations[10]: it names no image_id; annotation left out",
        "annotation id 2: it says the same as annotation id 1; annotation left out",
        "annotation id 4: the box has no area; annotation left out",
        "image id 2: it says 30x40 pixels, turned.png has 40x30; image skipped",
    ]
    assert {problem.kind for problem in index.problems[3:9]} == {"label malformed"}  # boxes are lost


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [\n{"file_name": "a.png", "id": 1},\n', r"a\.json:3: not valid JSON"),
        ('[{"image_id": 1, "file_name": "a.png"}]', "a list of results is not a data set"),
        ('{"images": {"file_name": "a.png"}, "categories": []}', "images is not a list"),
        ('{"images": [{"id": 1, "file_name": "a.png"}]}', "categories is not a list"),
        ('{"images": [], "categories": []}', "no images for 'train'"),
        ('{"images": [{"file_name": "a.png"}], "categories": [{"id": 1}]}', r"categories\[0\] has no number"),
    ],
)
def test_a_file_that_is_no_data_set_is_refused(tmp_path: Path, content: str, message: str) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path, "train: a.json\nnames: [dent]\n")


def test_a_change_of_the_file_or_an_image_makes_a_new_index(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    images = [image(1, "a.png"), image(2, "b.png")]
    write(tmp_path / "a.json", images, [annotation(1, 1, 3, [1, 1, 5, 5])])
    first = load(tmp_path, "train: a.json\n")
    assert load(tmp_path, "train: a.json\n").file == first.file
    write_image(tmp_path / "b.png")
    second = load(tmp_path, "train: a.json\n")
    assert len(second) == 2
    write(tmp_path / "a.json", images, [annotation(1, 1, 7, [1, 1, 5, 5])])
    assert load(tmp_path, "train: a.json\n").labels.tolist() == [1]
    assert first.labels.tolist() == [0]


def test_predictions_score_the_same_on_the_users_own_file(tmp_path: Path) -> None:
    """Sparse image and category ids, crowds, equal scores: pycocotools reads what we write."""
    random = np.random.default_rng(3)
    numbers = random.permutation(24) * 11 + 100017
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in numbers.tolist():
        write_image(tmp_path / "images" / f"{random.integers(10**9)}-{number}.png", 200, 150)
    for path, number in zip(sorted((tmp_path / "images").iterdir()), numbers.tolist(), strict=True):
        images.append({"id": number, "file_name": path.name, "width": 200, "height": 150})
        for _ in range(random.integers(0, 6)):
            x, y, width, height = *random.uniform(0, 90, 2), *random.uniform(5, 60, 2)
            own = annotation(len(annotations) + 1, number, int(random.choice([3, 7, 90])), [x, y, width, height])
            annotations.append(own | {"area": width * height, "iscrowd": int(random.random() < 0.1)})
    file = write(tmp_path / "instances.json", images, annotations)
    index = load(tmp_path, "val: instances.json\n", "val")

    predictions = {}
    for position in range(len(index)):
        boxes, labels, _ = index.annotations(position)
        boxes = np.concatenate([boxes, boxes]) + random.normal(0, 3, (2 * len(boxes), 4)).astype(np.float32)
        scores = random.uniform(0, 1, len(boxes)).round(2).astype(np.float32)
        order = np.argsort(-scores)
        found = (boxes[order], scores[order], np.concatenate([labels, labels])[order])
        predictions[position] = Detections(*map(torch.from_numpy, found))
    save_json(tmp_path / "predictions.json", index, predictions)

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "predictions.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] > 0.1
    assert evaluate(index, predictions, max_det=100).map50_95 == pytest.approx(evaluation.stats[0], abs=1e-6)
    rows = json.loads((tmp_path / "predictions.json").read_text())
    names = {image["id"]: image["file_name"] for image in images}
    assert all(names[row["image_id"]] == row["file_name"] for row in rows)
    assert {row["category_id"] for row in rows} == {3, 7, 90}
