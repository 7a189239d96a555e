"""Tiles cropped and resized straight into the sample, beside the plain way: a canvas, and one warp of it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yoloyard.common.structures import Sample
from yoloyard.config.settings import AugmentConfig, TrainConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import load_index
from yoloyard.data.loading import image_cache
from yoloyard.data.loading.loader import make_train_loader
from yoloyard.data.pixels import augment

IMGSZ = 64


def plain(placed: list[augment.Placed], canvas: tuple[int, int], *how: object) -> Sample:
    return augment.warp(augment.joined(placed, canvas), *how)  # type: ignore[arg-type]


def sample(random: np.random.Generator, label: int) -> Sample:
    """A smooth image with three boxes of a class of its own."""
    height, width = random.integers(IMGSZ // 2, IMGSZ + 1, 2)
    image = cv2.resize(random.integers(0, 256, (4, 4, 3), np.uint8), (int(width), int(height)))
    corner = random.uniform(0, 0.6, (3, 2)) * (width, height)
    boxes = np.concatenate((corner, corner + 0.4 * random.uniform(0.3, 1, (3, 2)) * (width, height)), axis=1)
    labels = np.arange(3) + 3 * label
    return Sample(image, boxes.astype(np.float32), labels, np.zeros(3, bool), label, source_ids=(label,))


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_sample_is_that_of_the_plain_way_to_less_than_a_pixel(seed: int, with_mosaic: bool) -> None:
    random = np.random.default_rng(seed)
    samples = [sample(random, label) for label in range(4)]
    if with_mosaic:
        canvas, placed = (2 * IMGSZ, 2 * IMGSZ), augment.mosaic(samples, IMGSZ, random)
    else:
        height, width = samples[0].image.shape[:2]
        canvas, placed = (height, width), [augment.Placed(samples[0], 0, 0)]
    matrix, zoom = augment.draw_affine(*canvas, (IMGSZ, IMGSZ), AugmentConfig(translate=0.2), random)
    expected = plain(placed, canvas, matrix, zoom, (IMGSZ, IMGSZ))
    found = augment.place(placed, canvas, matrix, zoom, (IMGSZ, IMGSZ))
    assert (found.image_id, found.source_ids) == (expected.image_id, expected.source_ids)
    boxes = dict(zip(expected.labels.tolist(), expected.boxes_xyxy, strict=True))
    for label, box in zip(found.labels.tolist(), found.boxes_xyxy, strict=True):
        if label in boxes:  # of a box at the limit one way may keep it, the other not
            np.testing.assert_allclose(box, boxes[label], atol=1.01)
    assert len(set(boxes) ^ set(found.labels.tolist())) <= 1
    # Away from the seams, where the plain way blends two images and this one has either.
    difference = np.abs(found.image.astype(int) - expected.image).max(axis=-1)
    assert np.median(difference) <= 6
    assert (difference > 40).mean() < 0.12


@pytest.mark.parametrize("change", [{"degrees": 5.0}, {"shear": 5.0}, {"perspective": 0.001}])
def test_what_a_crop_cannot_do_is_warped(change: dict[str, float]) -> None:
    random = np.random.default_rng(3)
    placed = augment.mosaic([sample(random, label) for label in range(4)], IMGSZ, random)
    canvas, shape = (2 * IMGSZ, 2 * IMGSZ), (IMGSZ, IMGSZ)
    matrix, zoom = augment.draw_affine(*canvas, shape, AugmentConfig(**change), random)  # type: ignore[arg-type]
    found, expected = augment.place(placed, canvas, matrix, zoom, shape), plain(placed, canvas, matrix, zoom, shape)
    assert (found.image == expected.image).all()
    assert (found.boxes_xyxy == expected.boxes_xyxy).all()


@pytest.mark.parametrize("mosaic", [1.0, 0.0])
def test_several_hundred_samples_are_distributed_as_those_of_the_plain_way(
    make_set: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, mosaic: float
) -> None:
    """From files to batches: JPEGs of up to four times the size, decoded in full and warped, or as we do it."""
    index = load_index(read_data_yaml(make_set(64, longest=4 * IMGSZ, suffix=".jpg")), "train")
    config = TrainConfig(batch=16, imgsz=IMGSZ, workers=0, augment=AugmentConfig(mosaic=mosaic, close_mosaic=0))

    def samples() -> tuple[np.ndarray, np.ndarray]:
        loader = make_train_loader(index, config)
        batches = [batch for epoch in range(6) for batch in loader.epoch(epoch)]
        images = np.concatenate([batch.images.numpy() for batch in batches])
        return images, np.concatenate([batch.boxes[batch.labels >= 0].numpy() for batch in batches])

    images, boxes = samples()
    monkeypatch.setattr(augment, "place", plain)
    monkeypatch.setattr(image_cache, "largest_reduction", lambda *_: 1)
    plain_images, plain_boxes = samples()
    assert len(images) == len(plain_images) == 384
    # Boxes: how many, how large, where.
    assert abs(len(boxes) - len(plain_boxes)) <= 0.01 * len(plain_boxes)
    for statistic in (lambda b: b, lambda b: b[:, 2:] - b[:, :2]):
        for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
            found, expected = (np.quantile(statistic(b), quantile, axis=0) for b in (boxes, plain_boxes))
            np.testing.assert_allclose(found, expected, atol=0.75)
    # Pixels: the share of each of 32 levels of each colour, and what is between neighbours.
    for channel in range(3):
        counts = [np.histogram(i[:, channel], 32, (0, 256))[0] / i[:, channel].size for i in (images, plain_images)]
        assert np.abs(counts[0] - counts[1]).sum() < 0.02
    steps = [np.abs(np.diff(i.astype(int), axis=-1)).mean() for i in (images, plain_images)]
    assert steps[0] == pytest.approx(steps[1], rel=0.05)


def test_neighbouring_images_leave_no_gap() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        whites = [
            dataclasses.replace(sample(random, label), image=np.full((IMGSZ, IMGSZ, 3), 255, np.uint8))
            for label in range(4)
        ]
        placed = augment.mosaic(whites, IMGSZ, random)
        canvas = (2 * IMGSZ, 2 * IMGSZ)
        matrix, zoom = augment.draw_affine(*canvas, (IMGSZ, IMGSZ), AugmentConfig(), random)
        image = augment.place(placed, canvas, matrix, zoom, (IMGSZ, IMGSZ)).image[..., 0]
        rows, columns = np.flatnonzero((image == 255).any(axis=1)), np.flatnonzero((image == 255).any(axis=0))
        assert (image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 255).all()
