"""Augmentation for lines: boxes stay exact, means stay, and what is off changes nothing."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yoloyard.common.structures import Batch, Sample
from yoloyard.config.settings import AugmentConfig, TrainConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import Index, load_index
from yoloyard.data.loading.batches import TrainingBatches, training_buckets
from yoloyard.data.loading.epoch_plan import plan_epochs
from yoloyard.data.loading.image_cache import RecentImages
from yoloyard.data.loading.sampling import BatchRequest
from yoloyard.data.pixels import line

KINDS = [(kind, channels) for kind in (np.uint8, np.uint16) for channels in (1, 3, 5)]
seeds = st.integers(0, 2**32 - 1)


def drawn(
    random: np.random.Generator, shape: tuple[int, int], boxes: list[list[int]], kind: type, channels: int, grey: float
) -> Sample:
    """A grey image with a box of noise for each defect."""
    largest = np.iinfo(kind).max
    image: np.ndarray = np.full((*shape, channels), round(grey * largest), kind)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = random.integers(0, largest, (y2 - y1, x2 - x1, channels), endpoint=True)
    none = np.zeros(len(boxes), bool)
    return Sample(image, np.array(boxes, np.float32).reshape(-1, 4), np.arange(len(boxes)), none, 7, source_ids=(7,))


def scattered(random: np.random.Generator, count: int, height: int, width: int) -> list[list[int]]:
    corners = random.integers(0, (width - 20, height - 20), (count, 2))
    return np.concatenate((corners, corners + random.integers(3, 20, (count, 2))), axis=1).tolist()


@pytest.mark.parametrize(("kind", "channels"), KINDS)
def test_pasted_defects_are_where_their_boxes_say(kind: type, channels: int) -> None:
    pasted_in_all = 0
    for seed in range(12):
        random = np.random.default_rng(seed)
        (height, width), (rows, columns) = random.integers(60, 120, (2, 2)).tolist()
        partner = drawn(random, (height, width), scattered(random, 3, height, width), kind, channels, 0.5)
        under = drawn(random, (rows, columns), scattered(random, 2, rows, columns), kind, channels, 0.5)
        before = under.image.copy(), partner.image.copy()
        under.image.flags.writeable = partner.image.flags.writeable = False  # they lie in a cache
        made = line.copy_paste(under, partner, random)
        pasted_in_all += len(made.labels) - 2
        np.testing.assert_array_equal(made.boxes_xyxy[:2], under.boxes_xyxy)
        changed = (made.image != before[0]).any(axis=-1)
        for box, number in zip(made.boxes_xyxy[2:], made.labels[2:].tolist(), strict=True):
            source = partner.boxes_xyxy[number]
            np.testing.assert_array_equal(box[2:] - box[:2], source[2:] - source[:2])
            (x1, y1, x2, y2), (left, top, right, bottom) = box.astype(int), source.astype(int)
            np.testing.assert_array_equal(made.image[y1:y2, x1:x2], before[1][top:bottom, left:right])
            middle, was = (box[:2] + box[2:]) / 2 / (columns, rows), (source[:2] + source[2:]) / 2 / (width, height)
            assert (abs(middle - was) <= 0.1 + 1 / min(rows, columns)).all()
            changed[y1:y2, x1:x2] = False
        assert not changed.any()  # all around is as grey here as there
        for (x1, y1, x2, y2), (left, top, right, bottom) in (
            (one, other)
            for number, one in enumerate(made.boxes_xyxy)
            for other in made.boxes_xyxy[max(2, number + 1) :]
        ):
            assert x2 <= left or right <= x1 or y2 <= top or bottom <= y1
        assert made.source_ids == ((7, 7) if len(made.labels) > 2 else (7,))
    assert pasted_in_all > 8


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_defect_takes_the_light_of_its_new_place_and_leaves_no_edge(kind: type) -> None:
    random, largest = np.random.default_rng(1), np.iinfo(kind).max
    partner = drawn(random, (80, 80), [[30, 30, 50, 50]], kind, 3, 0.45)
    partner.image[30:50, 30:50] = round(0.3 * largest)
    under = drawn(random, (80, 80), [], kind, 3, 0.55)
    made = line.copy_paste(under, partner, random)
    x1, y1, x2, y2 = made.boxes_xyxy[0].astype(int)
    assert (x2 - x1, y2 - y1) == (20, 20)
    assert (abs(made.image[y1:y2, x1:x2] / largest - 0.4) < 0.005).all()
    made.image[y1:y2, x1:x2] = round(0.55 * largest)
    assert (abs(made.image / largest - 0.55) < 0.005).all()  # a step of 0.1 at the patch's edge is gone


@pytest.mark.parametrize(
    ("boxes", "grey"),
    [
        ([[30, 30, 50, 50]], 0.8),  # other surroundings
        ([[0, 30, 20, 50]], 0.4),  # may go on outside its image
        ([[30, 30, 50, 50], [45, 45, 60, 60]], 0.4),  # would come with a part of another one
        ([], 0.4),
    ],
)
def test_a_defect_is_not_pasted_where_it_may_not_be(boxes: list[list[int]], grey: float) -> None:
    for seed in range(5):
        random = np.random.default_rng(seed)
        under, partner = (
            drawn(random, (80, 80), each, np.uint8, 3, shade) for each, shade in (([], 0.4), (boxes, grey))
        )
        assert line.copy_paste(under, partner, random) is under


@given(seeds, st.sampled_from(["0", "180", "90"]), st.sampled_from([(50, 50), (40, 60)]))
@settings(max_examples=60, deadline=None)
def test_turned_boxes_enclose_what_they_enclosed(seed: int, rotate90: str, shape: tuple[int, int]) -> None:
    random = np.random.default_rng(seed)
    (box,) = scattered(random, 1, *shape)
    sample = drawn(random, shape, [box], np.uint8, 5, 0)
    sample.image[box[1] : box[3], box[0] : box[2]] = random.integers(1, 256, (box[3] - box[1], box[2] - box[0], 5))
    made = line.rotate90(sample, AugmentConfig(rotate90=rotate90), random)
    assert made.image.shape == sample.image.shape
    rows, columns = np.nonzero(made.image.any(axis=-1))
    bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_array_equal(made.boxes_xyxy, [bounds])
    turns = [k for k in range(4) if np.array_equal(np.rot90(sample.image, k), made.image)]
    assert turns[0] in {"0": (0,), "180": (0, 2), "90": range(4) if shape[0] == shape[1] else (0, 2)}[rotate90]


@pytest.mark.parametrize(("rotate90", "height", "turns"), [("90", 8, 4), ("90", 12, 2), ("180", 8, 2), ("0", 8, 1)])
def test_every_turn_that_is_allowed_comes(rotate90: str, height: int, turns: int) -> None:
    random, config = np.random.default_rng(0), AugmentConfig(rotate90=rotate90)
    sample = drawn(random, (height, 8), [[0, 0, 4, 4]], np.uint8, 3, 0)
    made = {line.rotate90(sample, config, random).image.tobytes() for _ in range(40)}
    assert len(made) == turns


def test_what_is_off_draws_nothing_and_changes_nothing() -> None:
    random = np.random.default_rng(0)
    sample = drawn(random, (40, 40), [[4, 4, 20, 20]], np.uint8, 3, 0.5)
    image, before = sample.image.copy(), random.bit_generator.state
    assert line.rotate90(sample, AugmentConfig(), random) is sample
    line.expose(image, AugmentConfig(), random)
    np.testing.assert_array_equal(image, sample.image)
    assert random.bit_generator.state == before


@pytest.mark.parametrize(("kind", "channels"), KINDS)
def test_light_belt_and_noise_keep_the_mean_in_every_type(
    kind: type, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "HIGHLIGHT_PROBABILITY", 0)
    largest = np.iinfo(kind).max
    for config in (AugmentConfig(light=0.3), AugmentConfig(belt_blur=9, belt_angle=30), AugmentConfig(noise=0.05)):
        random = np.random.default_rng(3)
        image: np.ndarray = np.full((60, 80, channels), round(0.4 * largest), kind)
        image[:, 30:60] = round(0.6 * largest)
        before = image.copy()
        line.expose(image, config, random)
        assert image.dtype == kind
        assert (image != before).any(axis=(0, 1)).all()
        assert abs(image.mean() / before.mean() - 1) < 0.01
        if kind is np.uint16 and not config.belt_blur:
            assert (image % 257 != 0).any()  # not in steps of 8 bits


def test_light_is_within_its_strength_and_alike_in_all_channels() -> None:
    spots = 0
    for seed in range(20):
        lit = line.light(np.full((50, 70, 2), 100, np.float32), 255, 0.3, np.random.default_rng(seed))
        np.testing.assert_array_equal(lit[..., 0], lit[..., 1])
        assert lit.min() >= 69.9
        assert lit.max() <= 130 + 0.3 * 155
        flat = lit[0, 0, 0] + lit[-1, -1, 0] - 200, lit[0, -1, 0] + lit[-1, 0, 0] - 200
        spots += lit.mean() > 100.01 or max(map(abs, flat)) > 0.01
    assert 5 <= spots <= 15  # highlights come in about half


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 135.0])
@pytest.mark.parametrize("length", [3.0, 10.5])
def test_a_moving_dot_becomes_a_line_along_the_belt(angle: float, length: float) -> None:
    dot = np.zeros((41, 41, 6), np.float32)
    dot[20, 20] = 100
    seen = line.belt_blur(dot, length, angle)
    np.testing.assert_array_equal(seen[..., 0], seen[..., 5])
    weights = seen[..., 0] / seen[..., 0].sum()
    y, x = np.mgrid[-20:21, -20:21]
    assert abs((weights * x).sum()) < 1e-4
    assert abs((weights * y).sum()) < 1e-4
    covariance = np.array([[(weights * one * other).sum() for one in (x, y)] for other in (x, y)])
    along = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    across = np.array([-along[1], along[0]])
    assert abs(math.sqrt(along @ covariance @ along) - length / math.sqrt(12)) < 0.25
    assert across @ covariance @ across < 0.3  # of a pixel that lies between others
    assert line.belt_blur(dot, 0, angle) is dot


@pytest.mark.parametrize("largest", [255.0, 65535.0])
def test_noise_grows_with_the_root_of_the_light(largest: float) -> None:
    random = np.random.default_rng(0)
    for level in (0.0, 0.25, 1.0):
        made = line.sensor_noise(np.full((100, 100, 3), level * largest, np.float32), largest, 0.04, random) / largest
        assert abs(made.mean() - level) < 0.001
        assert made.std() == pytest.approx(0.04 * math.sqrt(0.2 + 0.8 * level), rel=0.03)


@pytest.fixture
def line_set(tmp_path: Path) -> Index:
    """Sixteen grey images; one in four has a defect."""
    random = np.random.default_rng(2)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number in range(16):
        sample = drawn(random, (64, 64), scattered(random, int(number % 4 == 0), 64, 64), np.uint8, 3, 0.5)
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), sample.image)
        boxes = [
            ((x1 + x2) / 128, (y1 + y2) / 128, (x2 - x1) / 64, (y2 - y1) / 64) for x1, y1, x2, y2 in sample.boxes_xyxy
        ]
        (tmp_path / "labels" / f"{number}.txt").write_text("".join("0 {} {} {} {}\n".format(*box) for box in boxes))
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [dent]\n")
    return load_index(read_data_yaml(tmp_path / "data.yaml"), "train")


def batches(index: Index, **augmentation: Any) -> TrainingBatches:
    still = AugmentConfig(mosaic=0, translate=0, scale=0, hsv_h=0, hsv_s=0, hsv_v=0)
    config = TrainConfig(imgsz=64, batch=16, augment=dataclasses.replace(still, **augmentation))
    return TrainingBatches(index, RecentImages(index, 64, 16), config, plan_epochs(index, config))


def test_batches_have_pasted_defects_until_mosaics_end(line_set: Index) -> None:
    off, on = batches(line_set), batches(line_set, copy_paste=1)
    request = BatchRequest(0, range(16), True)
    made, plain = on[request], off[request]
    assert isinstance(made, Batch)
    assert isinstance(plain, Batch)
    assert (plain.labels >= 0).sum() == 4
    assert 10 <= (made.labels >= 0).sum() <= 20  # one of eight others mostly has one
    again = on[request]  # from images that were kept: none of them was written to
    assert isinstance(again, Batch)
    assert made.images.equal(again.images)
    assert made.boxes.equal(again.boxes)
    at_end = dataclasses.replace(request, mosaic=False)
    last, plain = on[at_end], off[at_end]
    assert isinstance(last, Batch)
    assert isinstance(plain, Batch)
    assert last.images.equal(plain.images)
    mosaics = batches(line_set, mosaic=1, copy_paste=1).config
    assert training_buckets(line_set, mosaics)[-1] >= 4 * (1 + line.MOST_PASTED)


def test_batches_are_turned_and_exposed(line_set: Index) -> None:
    request, plain = BatchRequest(0, range(16), False), batches(line_set, fliplr=0)
    for augmentation in ({"rotate90": "90"}, {"light": 0.2}, {"belt_blur": 5}, {"noise": 0.1}):
        made, before = batches(line_set, fliplr=0, **augmentation)[request], plain[request]
        assert isinstance(made, Batch)
        assert isinstance(before, Batch)
        changed = (made.images != before.images).flatten(1).any(1)
        assert changed.sum() >= 2
        assert made.boxes.equal(before.boxes) == ("rotate90" not in augmentation)
