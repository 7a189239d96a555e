"""Repeated images and rectangular batches: what an epoch holds, and that every process agrees on it."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yoloyard.common.structures import Batch
from yoloyard.config.settings import AugmentConfig, TrainConfig
from yoloyard.data.index.index import Index
from yoloyard.data.loading.epoch_plan import EpochPlan, repeat_factors
from yoloyard.data.loading.loader import make_train_loader
from yoloyard.data.loading.sampling import epoch_order, rectangular_batches, rectangular_shape

STILL = AugmentConfig(mosaic=0, translate=0, scale=0, fliplr=0, hsv_h=0, hsv_s=0, hsv_v=0)
RECT = {"rect": True, "augment": AugmentConfig(mosaic=0, degrees=10, flipud=0.3)}
REPEAT = {"repeat_factor": 0.9, "augment": AugmentConfig(mosaic=0.5, mixup=0.3)}


def config(**changes: object) -> TrainConfig:
    return dataclasses.replace(TrainConfig(batch=4, imgsz=64, workers=0, epochs=30, seed=9), **changes)  # type: ignore[arg-type]


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(a.boxes, b.boxes) and a.image_ids == b.image_ids
        for a, b in zip(first, second, strict=True)
    )


def test_without_repeats_an_epoch_is_the_plain_permutation() -> None:
    order = EpochPlan(np.ones(20), 8, 64, seed=5).order(3)
    assert order.images.tolist() == epoch_order(5, 3, 20).tolist()
    assert not order.repeats.any()
    assert order.shapes.tolist() == [[64, 64]] * 3


@settings(max_examples=200)
@given(st.lists(st.floats(1, 6), min_size=1, max_size=40), st.integers(0, 2**32), st.integers(0, 500))
def test_an_image_comes_its_factor_rounded_down_or_up(factors: list[float], seed: int, epoch: int) -> None:
    plan = EpochPlan(np.array(factors), 1, 64, seed)
    order = plan.order(epoch)
    assert len(plan) == len(order.images) == round(sum(factors))
    counts = np.bincount(order.images, minlength=len(factors))
    assert (np.floor(factors) <= counts).all()
    assert (counts <= np.ceil(factors)).all()
    # The repeats of an image are numbered.
    for image, count in enumerate(counts):
        assert sorted(order.repeats[order.images == image]) == list(range(count))
    again = plan.order(epoch)
    assert (again.images == order.images).all()
    assert (again.repeats == order.repeats).all()


@settings(max_examples=100)
@given(st.lists(st.floats(1, 3), min_size=2, max_size=30), st.integers(0, 2**32), st.integers(0, 500), st.data())
def test_others_take_the_places_of_images_that_are_left_out(
    factors: list[float], seed: int, epoch: int, data: st.DataObject
) -> None:
    plan = EpochPlan(np.array(factors), 1, 64, seed)
    left_out = tuple(data.draw(st.sets(st.integers(0, len(factors) - 1), max_size=len(factors) - 1)))
    whole, order = plan.order(epoch), plan.order(epoch, left_out)
    kept = ~np.isin(whole.images, left_out)
    assert (order.images[kept] == whole.images[kept]).all()
    assert (order.repeats[kept] == whole.repeats[kept]).all()
    assert not np.isin(order.images, left_out).any()
    samples = list(zip(order.images.tolist(), order.repeats.tolist(), strict=True))
    assert len(set(samples)) == len(samples)  # each is a sample of its own
    assert (plan.order(epoch, left_out).images == order.images).all()


def test_over_many_epochs_an_image_comes_as_often_as_its_factor_says() -> None:
    factors = np.array([1, 1, 1.1, 1.3, 1.6, 2, 2.25, 2.75, 4.5, 1.5])
    plan = EpochPlan(factors, 4, 64, seed=1)
    counts = np.array([np.bincount(plan.order(epoch).images, minlength=10) for epoch in range(2000)])
    assert (counts.sum(axis=1) == 19).all()
    # Five standard deviations of a draw with the probability 1/2.
    np.testing.assert_allclose(counts.mean(axis=0), factors, atol=5 * 0.5 / math.sqrt(2000))
    assert (counts[:, factors % 1 == 0] == factors[factors % 1 == 0]).all()
    # Which images are drawn together changes.
    assert len({tuple(row) for row in counts}) > 30


def test_the_rarest_class_of_an_image_decides(index: Index) -> None:
    # Of 24 images: class 0 in the first 16, class 1 in the first; the last one has only a box that is to be ignored.
    counts = np.array([2] + [1] * 15 + [0] * 7 + [1])
    labels = np.array([0, 1] + [0] * 15 + [1])
    ignore = np.array([False] * 17 + [True])
    made = dataclasses.replace(
        index, offsets=np.cumsum([0, *counts]), labels=labels, boxes=np.zeros((18, 4)), ignore=ignore, file=None
    )
    factors = repeat_factors(made, 0.5)
    assert factors[0] == pytest.approx(math.sqrt(0.5 * 24))
    assert (factors[1:] == 1).all()
    assert repeat_factors(made, 1.0)[1:16] == pytest.approx(math.sqrt(24 / 16))
    assert (repeat_factors(made, 0.04) == 1).all()


def test_repeats_in_an_epoch_are_other_samples_and_first_ones_the_same_as_ever(index: Index) -> None:
    plain = {
        batch.image_ids[row]: batch.images[row]
        for batch in make_train_loader(index, config()).epoch(29)  # mosaic is off: an image depends on no other
        for row in range(4)
    }
    loader = make_train_loader(index, config(repeat_factor=1.0))
    seen: dict[int, list[torch.Tensor]] = {}
    for batch in loader.epoch(29):
        for row, image in enumerate(batch.image_ids):
            if not any(torch.equal(batch.images[row], other) for other in seen.get(image, [])):
                seen.setdefault(image, []).append(batch.images[row])
    order = EpochPlan(repeat_factors(index, 1.0), 4, 64, 9).order(29)
    assert {image: len(samples) for image, samples in seen.items()} == {
        int(image): int((order.images == image).sum()) for image in order.images
    }
    assert max(len(samples) for samples in seen.values()) > 1
    assert all(any(torch.equal(plain[image], each) for each in samples) for image, samples in seen.items())


@pytest.mark.parametrize("overrides", [REPEAT, RECT, RECT | {"repeat_factor": 0.9}])
def test_neither_workers_nor_ranks_nor_a_resume_change_a_sample(index: Index, overrides: dict[str, object]) -> None:
    settings = config(**overrides)
    whole = list(make_train_loader(index, settings).epoch(1))
    assert len(whole) == len(make_train_loader(index, settings))
    assert same(whole[3:], list(make_train_loader(index, settings).epoch(1, position=12)))
    assert same(whole, list(make_train_loader(index, dataclasses.replace(settings, workers=2)).epoch(1)))
    ranks = [make_train_loader(index, settings, rank, world_size=2).epoch(1) for rank in (0, 1)]
    for batch, *shares in zip(whole, *ranks, strict=True):
        assert torch.equal(batch.images, torch.cat([share.images for share in shares]))
    if overrides.get("repeat_factor"):
        assert len(whole) > 6


def test_rectangular_batches_keep_their_members_and_change_their_order(index: Index) -> None:
    loader = make_train_loader(index, config(rect=True, augment=STILL))
    published = {tuple(sorted(ids)): shape for ids, shape in rectangular_batches(index.sizes, 64, 4)}
    assert len(set(published.values())) > 1
    orders = []
    for epoch in (0, 1):
        batches = {tuple(sorted(batch.image_ids)): tuple(batch.images.shape[2:]) for batch in loader.epoch(epoch)}
        assert batches == published
        orders.append(list(batches))
    assert orders[0] != orders[1]


def test_a_rectangular_batch_that_is_not_full_comes_last_and_fits_what_fills_it(index: Index) -> None:
    for epoch in range(4):
        *_, last = batches = list(make_train_loader(index, config(rect=True, augment=STILL, batch=5)).epoch(epoch))
        assert last.image_ids[4:] == batches[0].image_ids[:1]
        ratios = index.sizes[last.image_ids][:, 0] / index.sizes[last.image_ids][:, 1]
        assert ratios.max() > 1  # the tallest
        assert tuple(last.images.shape[2:]) == rectangular_shape(ratios.min(), ratios.max(), 64, 32)


def test_stride_of_rectangular_batches(index: Index) -> None:
    shapes = {
        tuple(batch.images.shape[2:])
        for batch in make_train_loader(index, config(rect=True, augment=STILL), stride=64).epoch(0)
    }
    assert all(side % 64 == 0 for shape in shapes for side in shape)
