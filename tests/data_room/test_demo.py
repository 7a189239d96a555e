"""The generated inspection line: what the demo set promises."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from yoloyard.common.errors import UserError
from yoloyard.demo import drawing as demo_images
from yoloyard.demo import write as demo
from yoloyard.demo.drawing import NAMES, VALIDATION_ONLY_SURFACES, VISIBLE, DrawnImage
from yoloyard.demo.write import demo_image, write_demo


@pytest.fixture(scope="module")
def training_images() -> list[DrawnImage]:
    return [demo_image(0, "train", index) for index in range(100)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def bounds(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_boxes_are_the_exact_bounds_of_masks_that_do_not_overlap(training_images: list[DrawnImage]) -> None:
    for image in training_images:
        assert [bounds(mask) for mask in image.masks] == image.boxes_xyxy.tolist()
        assert len(image.labels) == len(image.masks)
        assert np.sum(image.masks, axis=0).max(initial=0) <= 1


@pytest.mark.parametrize("name", ["scratch", "dent", "stain", "crack"])
def test_a_mask_covers_what_was_drawn(name: str) -> None:
    draw, smallest, largest = demo_images._DEFECTS[name]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        side = int(rng.integers(int(smallest), int(largest)))
        patch = np.full((side, side, 3), 0.5, np.float32)
        mask = draw(rng, patch, "metal") >= VISIBLE
        changed = np.abs(patch - 0.5).max(axis=2) > 0.12
        distance = np.abs(np.subtract(bounds(mask), bounds(changed)))
        # A dent has no contrast where its rim runs along the light; all else ends where its mask ends.
        assert distance.max() <= (0.2 * side if name == "dent" else 2)
        assert not (changed & ~cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)).any()


def test_a_missing_screw_is_where_the_image_shows_a_hole() -> None:
    shown = 0
    for index in range(40):
        image = demo_image(0, "train", index)
        for box, label in zip(image.boxes_xyxy, image.labels, strict=True):
            if NAMES[label] == "missing_screw":
                x, y = (box[:2] + box[2:]) // 2
                assert image.pixels[y - 2 : y + 3, x - 2 : x + 3].mean() < 45
                shown += 1
    assert shown >= 5


def test_one_image_in_five_has_no_defect(training_images: list[DrawnImage]) -> None:
    assert sum(len(image.labels) == 0 for image in training_images) == 20


def test_many_boxes_are_small_and_all_classes_are_there(training_images: list[DrawnImage]) -> None:
    boxes = np.concatenate([image.boxes_xyxy for image in training_images])
    longest = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert (longest < 32).mean() >= 0.3
    assert longest.min() >= 12
    counts = np.bincount(np.concatenate([image.labels for image in training_images]), minlength=len(NAMES))
    assert counts.min() >= 0.1 * counts.sum()


def test_some_surfaces_are_only_in_validation(training_images: list[DrawnImage]) -> None:
    validation = [demo_image(0, "val", index).surface for index in range(60)]
    assert {image.surface for image in training_images}.isdisjoint(VALIDATION_ONLY_SURFACES)
    assert set(VALIDATION_ONLY_SURFACES) <= set(validation)
    assert sum(surface in VALIDATION_ONLY_SURFACES for surface in validation) == 15


def test_the_set_has_the_standard_layout(tmp_path: Path) -> None:
    data = write_demo(tmp_path / "demo", train=10, val=5, size=160)
    content = yaml.safe_load(data.read_text())
    assert list(content["names"].values()) == list(NAMES)
    for split, count in (("train", 10), ("val", 5)):
        images = sorted((data.parent / content[split]).iterdir())
        assert len(images) == count
        for index, image in enumerate(images):
            pixels = cv2.imread(str(image))
            assert pixels is not None
            assert pixels.shape == (160, 160, 3)
            label_file = data.parent / "labels" / split / f"{image.stem}.txt"
            rows = np.loadtxt(label_file, ndmin=2).reshape(-1, 5) if label_file.stat().st_size else np.empty((0, 5))
            image = demo_image(0, split, index, 160)
            corners = np.concatenate([rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2], axis=1) * 160
            np.testing.assert_allclose(corners, image.boxes_xyxy, atol=1e-3)
            np.testing.assert_array_equal(rows[:, 0], image.labels)


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        write_demo(tmp_path / name, seed=seed, train=4, val=2, size=96)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(tmp_path / "one")["images/train/0001.jpg"] != contents(tmp_path / "other")["images/train/0001.jpg"]


def test_a_complete_set_is_used_again_and_any_other_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    write_demo(folder, train=4, val=2, size=96)
    first = contents(folder)
    (folder / "labels" / "train.cache").write_bytes(b"somebody's cache")
    write_demo(folder, train=4, val=2, size=96)
    assert (folder / "labels" / "train.cache").exists(), "the same set is not written again"
    (folder / "images" / "train" / "0002.jpg").unlink()
    write_demo(folder, train=4, val=2, size=96)
    assert contents(folder) == first
    write_demo(folder, seed=5, train=4, val=2, size=96)
    assert contents(folder).keys() == first.keys()
    assert contents(folder) != first


def test_a_set_that_was_interrupted_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def interrupted(seed: int, split: str, index: int, size: int) -> DrawnImage:
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(index)
        return demo_image(seed, split, index, size)

    with monkeypatch.context() as patched:
        patched.setattr(demo, "demo_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_demo(tmp_path / "demo", train=4, val=2, size=96)
    assert list(tmp_path.iterdir()) == []
    assert write_demo(tmp_path / "demo", train=4, val=2, size=96).is_file()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds other files"):
        write_demo(tmp_path, train=4, val=2, size=96)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}
