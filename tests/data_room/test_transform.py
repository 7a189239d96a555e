"""A transform of the user's own: what it is given, what it may return, and that it is as reproducible as all else."""

import dataclasses
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.structures import Batch, Sample
from yoloyard.common.user_file import UserFile
from yoloyard.config.settings import AugmentConfig, TrainConfig
from yoloyard.data.index.index import Index
from yoloyard.data.loading.loader import make_train_loader
from yoloyard.data.pixels.transform import Transform, restore

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

IMAGE = Path("images/0007.jpg")
BOXES = A.BboxParams(format="pascal_voc", label_fields=["kinds"])
CONFIG = TrainConfig(batch=4, imgsz=64, workers=0, epochs=3, seed=9, augment=AugmentConfig(mixup=0.3, mosaic=0.5))
Result = tuple[np.ndarray, np.ndarray, np.ndarray]


def sample(boxes: list[list[float]] | None = None) -> Sample:
    """64 x 64 pixels, black but for its boxes, which are white."""
    boxes = [[20, 10, 40, 50]] if boxes is None else boxes
    image = np.zeros((64, 64, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[int(y1) : int(y2), int(x1) : int(x2)] = 255
    count = len(boxes)
    return Sample(
        image, np.array(boxes, np.float32).reshape(-1, 4), np.arange(count) % 2, np.zeros(count, bool), 7, None, (7,)
    )


def apply(function: Any, given: Sample | None = None, seed: int = 0) -> Sample:
    return Transform(function)(given or sample(), np.random.default_rng(seed), 2, IMAGE)


def extent(image: np.ndarray) -> list[int]:
    """The box around what is white."""
    rows, columns = np.nonzero(image[..., 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def noisy(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> Result:
    """Draws from every generator that a function may use, and adds a box."""
    shift = random.randint(0, 9) + np.random.randint(10) + int(torch.randint(10, ()))
    added = np.array([[1, 2, 3 + shift, 30]], np.float32)
    return np.roll(image, shift, axis=1), np.concatenate((boxes, added)), np.append(labels, 1)


def untouched(image: np.ndarray, **_: Any) -> np.ndarray:
    return image


def test_a_function_is_given_pixels_and_gives_them_back() -> None:
    seen: list[Any] = []

    def function(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> Result:
        seen[:] = [(image.shape, image.dtype), (boxes.shape, boxes.dtype), (labels.shape, labels.dtype)]
        return image[:, ::-1], 64 - boxes[:, [2, 1, 0, 3]] * [1, -1, 1, -1] - [0, 64, 0, 64], labels

    found = apply(function)
    assert seen == [((64, 64, 3), np.uint8), ((1, 4), np.float32), ((1,), np.int64)]
    assert found.boxes_xyxy.tolist() == [[24, 10, 44, 50]] == [extent(found.image)]
    assert found.image.flags.c_contiguous
    assert (found.boxes_xyxy.dtype, found.labels.dtype, found.ignore.dtype) == (np.float32, np.int64, bool)
    assert found.source_ids == (7,)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (128, 64), (30, 50)])
def test_a_image_of_another_size_is_fitted_into_the_old_one(height: int, width: int) -> None:
    def resized(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> Result:
        return cv2.resize(image, (width, height)), boxes * ([width / 64, height / 64] * 2), labels

    found = apply(resized)
    assert found.image.shape == (64, 64, 3)
    assert np.abs(found.boxes_xyxy[0] - extent(found.image)).max() <= 1.5


def test_boxes_are_clipped_and_those_without_area_go() -> None:
    boxes = [[-5, 5, 30, 70], [70, 0, 90, 20], [10, 10, 10, 20], [30, 5, 20, 50]]
    found = apply(lambda image, _, __: (image, boxes, [1, 0, 0, 0]))
    assert found.boxes_xyxy.tolist() == [[0, 5, 30, 64]]
    assert found.labels.tolist() == [1]
    assert len(apply(lambda image, _, __: (image, [], [])).boxes_xyxy) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i, b, n: (i / 255, b, n),
            r"uint8 array \(height, width, 3\), not ndarray float64 \(64, 64",
        ),
        (lambda i, b, n: (i[..., 0], b, n), r"must be a uint8 array .* not ndarray uint8 \(64, 64\)"),
        (lambda i, b, n: (torch.from_numpy(i), b, n), "must be a uint8 array .* leave out normalisation and tensors"),
        (lambda i, b, n: (i[:0], b, n), "no pixels"),
        (lambda i, b, n: i, "must return image, boxes, labels, not ndarray"),
        (lambda i, b, n: None, "must return image, boxes, labels, not NoneType"),
        (lambda i, b, n: (i, b), "must return image, boxes, labels, not 2 things"),
        (lambda i, b, n: (i, b, [0, 1]), r"boxes \(1, 4\) and labels \(2,\)"),
        (lambda i, b, n: (i, b[0], n), r"boxes \(4,\) and labels"),
        (lambda i, b, n: (i, [[0, 0, 1]], n), r"boxes \(1, 3\)"),
        (lambda i, b, n: (i, b * np.nan, n), "not finite"),
        (lambda i, b, n: (i, b, n + 2), r"whole numbers from 0 to 1, not \[2\.0\]"),
        (lambda i, b, n: (i, b, ["dent"]), "must be numbers"),
        (lambda i, b, n: (i, b, n / 0.7 - 0.5), "whole numbers"),
        (lambda i, b, n: 1 / 0, r"test_transform\.py, line \d+ \(.*1 / 0.*\): ZeroDivisionError"),
    ],
)
def test_what_is_wrong_names_transform_and_image(change: Callable[..., Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"the transform <lambda> fails on {IMAGE}: .*{message}") as caught:
        apply(change)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="neither a function"):
        Transform(3)  # type: ignore[arg-type]


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(a.boxes, b.boxes) and torch.equal(a.labels, b.labels)
        for a, b in zip(first, second, strict=True)
    )


def batches(index: Index, function: Any, start_method: str | None = None, **changes: Any) -> list[Batch]:
    config = dataclasses.replace(CONFIG, **changes)
    return list(make_train_loader(index, config, start_method=start_method, transform=Transform(function)).epoch(1))


PIPELINE = A.Compose([A.HorizontalFlip(), A.RandomBrightnessContrast(), A.CoarseDropout()], bbox_params=BOXES)


@pytest.mark.parametrize("function", [noisy, PIPELINE])
def test_a_sample_depends_on_seed_epoch_and_image_alone(index: Index, function: Any) -> None:
    random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    alone = batches(index, function)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    random.seed(2)
    assert same(alone, batches(index, function))
    assert same(alone, batches(index, function, workers=2))
    assert not same(alone, batches(index, function, seed=10))
    assert not same(alone, list(make_train_loader(index, CONFIG).epoch(1)))


def test_without_a_transform_nothing_is_drawn_for_it(index: Index) -> None:
    """Such a run's samples are those of a run that was begun before there were transforms."""
    plain = list(make_train_loader(index, CONFIG).epoch(1))
    config = dataclasses.replace(CONFIG.augment, hsv_h=0, hsv_s=0, hsv_v=0, fliplr=0)
    still = dataclasses.replace(CONFIG, augment=config)
    assert same(
        list(make_train_loader(index, still).epoch(1)),
        batches(index, lambda image, boxes, labels: (image, boxes, labels), augment=config),
    )
    assert not same(plain, batches(index, noisy))


def test_any_number_of_boxes_finds_room_in_a_batch(index: Index) -> None:
    many = batches(index, lambda image, boxes, labels: (image, [[1, 1, 9, 9]] * 300, [1] * 300))
    assert all((batch.labels >= 0).sum(dim=1).eq(300).all() for batch in many)
    assert len({batch.labels.shape for batch in many}) == 1


def test_an_error_in_a_worker_arrives(index: Index) -> None:
    with pytest.raises(UserError, match=r"the transform <lambda> fails on .*\.png: .*ZeroDivisionError"):
        batches(index, lambda image, boxes, labels: 1 / 0, workers=1)


FILE = """\
import os
import albumentations as A
import numpy as np

assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"
LEVEL = 7

def darker(image, boxes, labels):
    return np.minimum(image, LEVEL + np.random.randint(90)), boxes, labels

def stumbles(image, boxes, labels):
    return image.nothing, boxes, labels

pipeline = A.Compose([A.VerticalFlip(p=1)], bbox_params=A.BboxParams(format="pascal_voc", label_fields=["labels"]))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_transform.py"
    path.write_text(FILE)
    return path


def named(file: Path, name: str) -> UserFile:
    return UserFile.read(f"{file}:{name}", "transform", "transform: --transform my_transform.py:NAME")


def test_a_file_has_a_function_or_a_pipeline(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE")
    assert 7 <= apply(named(file, "darker")).image.max() < 97
    assert "NO_ALBUMENTATIONS_UPDATE" not in os.environ
    assert apply(named(file, "pipeline")).boxes_xyxy.tolist() == [[20, 14, 40, 54]]
    with pytest.raises(UserError, match=r"my_transform\.py, line 12 \(`return image\.nothing, .*AttributeError"):
        apply(named(file, "stumbles"))
    with pytest.raises(UsageError, match="has no function missing; say --transform"):
        apply(named(file, "missing"))
    with pytest.raises(UsageError, match=r"say which function makes the transform: --transform my_transform\.py:NAME"):
        UserFile.read(str(file), "transform", "transform: --transform my_transform.py:NAME")
    file.write_text("import numpy\n1 / 0\n")
    with pytest.raises(UserError, match=r"my_transform\.py, line 2 \(`1 / 0`\): ZeroDivisionError"):
        apply(named(file, "darker"))


def test_what_a_file_defines_reaches_a_spawned_worker_and_a_lambda_does_not(file: Path, index: Index) -> None:
    darker = named(file, "darker")
    assert same(batches(index, darker), batches(index, darker, start_method="spawn", workers=1))
    with pytest.raises(UsageError, match=r"can't be handed to the processes that load images.*--workers 0"):
        batches(index, lambda image, boxes, labels: (image, boxes, labels), start_method="spawn", workers=1)


def test_a_pipeline_moves_boxes_with_the_image() -> None:
    mirrored = A.Compose([A.HorizontalFlip(p=1)], bbox_params=BOXES)
    found = apply(mirrored)
    assert found.boxes_xyxy.round(3).tolist() == [[24, 10, 44, 50]] == [extent(found.image)]
    assert apply(mirrored, sample([])).boxes_xyxy.shape == (0, 4)
    several = sample([[20, 10, 40, 50], [1, 1, 5, 5], [50, 2, 60, 9]])
    cropped = apply(A.Compose([A.Crop(0, 0, 30, 30)], bbox_params=BOXES), several)
    assert cropped.image.shape == (64, 64, 3)
    assert np.abs(cropped.boxes_xyxy - np.array([[20, 10, 30, 30], [1, 1, 5, 5]]) * 64 / 30).max() < 1e-3
    assert cropped.labels.tolist() == [0, 1]


def test_a_pipeline_without_boxes_must_leave_them_where_they_are() -> None:
    brighter = A.Compose([A.RandomBrightnessContrast((0.4, 0.4), p=1)])
    found = apply(brighter)
    assert found.boxes_xyxy.tolist() == [[20, 10, 40, 50]]
    assert found.image.min() > 50
    with pytest.raises(UsageError, match=r"must be given the boxes \(HorizontalFlip\): bbox_params=A\.BboxParams"):
        apply(A.Compose([A.Blur(), A.OneOf([A.HorizontalFlip()])]))

    class Half(A.ImageOnlyTransform):
        def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
            return img[:32]

    with pytest.raises(UserError, match="changes the image's size, so it must be given the boxes"):
        apply(A.Compose([Half(p=1)], is_check_shapes=False))


@pytest.mark.parametrize(
    "params",
    [
        A.BboxParams(format="yolo", label_fields=["kinds"]),
        A.BboxParams(format="pascal_voc"),
        A.BboxParams(format="pascal_voc", label_fields=["kinds", "colours"]),
    ],
)
def test_a_pipeline_with_other_boxes_is_told_what_to_write(params: A.BboxParams) -> None:
    with pytest.raises(UsageError, match=r"write bbox_params=A\.BboxParams\(format='pascal_voc', label_fields=\['la"):
        apply(A.Compose([A.HorizontalFlip()], bbox_params=params))


def test_a_pipeline_is_kept_and_restored(tmp_path: Path) -> None:
    transform = Transform(PIPELINE)
    transform.keep(tmp_path)
    again = restore(tmp_path, transform.facts)
    assert again.facts == transform.facts == {"kind": "pipeline", "name": "Compose", "digest": None}
    for seed in range(5):
        first, second = (one(sample(), np.random.default_rng(seed), 2, IMAGE) for one in (transform, again))
        assert (first.image == second.image).all()
        assert (first.boxes_xyxy == second.boxes_xyxy).all()
    (tmp_path / "transform.json").write_text("{}")
    with pytest.raises(UsageError, match=r"transform\.json gives no pipeline .*hand it in again: yoloyard\.train"):
        restore(tmp_path, transform.facts)


@pytest.mark.parametrize(
    "function",
    [
        noisy,
        A.Compose([A.Lambda(image=untouched)], bbox_params=BOXES),
        # what its text would leave out
        A.Compose(
            [A.HorizontalFlip()],
            bbox_params=A.BboxParams(format="pascal_voc", label_fields=["kinds"], filter_invalid_bboxes=True),
        ),
    ],
)
def test_what_can_not_be_kept_must_be_handed_in_again(tmp_path: Path, function: Any) -> None:
    transform = Transform(function)
    transform.keep(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match=r"hand it in again: yoloyard\.train\(resume=.*, transform=(noisy|Compose)\)"):
        restore(tmp_path, transform.facts)


def test_a_file_is_kept_with_its_digest(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    transform = Transform(named(file, "darker"))
    transform.keep(run)
    file.write_text("edited for the next idea")
    again = restore(run, transform.facts)
    assert again.facts == transform.facts
    (run / "my_transform.py").write_text(FILE + "# changed\n")
    with pytest.raises(UserError, match="is not the file that this run was trained with"):
        restore(run, transform.facts)
    (run / "my_transform.py").unlink()
    with pytest.raises(UsageError, match="cannot read the transform"):
        restore(run, transform.facts)


def test_the_transforms_of_the_docs_work(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "transforms.md").read_text(encoding="utf-8")
    files = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "yoloyard.train" not in block]
    (tmp_path / "my_transform.py").write_text("\n".join(files))
    names = re.findall(r"--transform my_transform\.py:(\w+)", page)
    assert set(names) == {"pipeline", "cutout"}
    for name in names:
        outcomes = [apply(named(tmp_path / "my_transform.py", name), seed=seed) for seed in range(8)]
        assert all(found.image.shape == (64, 64, 3) for found in outcomes)
        assert len({found.image.tobytes() for found in outcomes}) > 3
        assert max(len(found.labels) for found in outcomes) == 1
