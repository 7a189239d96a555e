"""The order of an epoch, the windows that mosaics draw from, and rectangular batches."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from yoloyard.data.loading.sampling import (
    BatchRequest,
    batch_requests,
    epoch_order,
    images_in_use,
    part_of,
    rectangular_batches,
    sample_random,
    window,
)

batch_sizes = st.integers(1, 256)
epoch_lengths = st.integers(1, 3000)


@given(epoch_lengths, batch_sizes, st.data())
def test_a_window_is_one_for_all_its_batches(num_batches: int, batch: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, num_batches - 1))
    here = window(number, num_batches, batch)
    assert number in here
    assert 0 <= here[0] <= here[-1] < num_batches
    assert all(window(other, num_batches, batch) == here for other in here)
    # Enough to choose from, unless the epoch is short; and not the whole data set.
    assert len(here) >= min(2, num_batches)
    assert len(here) * batch >= min(30, num_batches * batch)
    assert len(here) <= 2 * max(2, round(64 / batch))


@given(st.integers(32, 3000), st.integers(16, 256), st.sampled_from([1, 2, 4, 8]), st.data())
def test_windows_of_long_epochs_stay_with_one_worker(
    num_batches: int, batch: int, workers: int, data: st.DataObject
) -> None:
    number = data.draw(st.integers(0, num_batches - 1))
    here = window(number, num_batches, batch)
    assert {other % workers for other in here} == {number % workers}


@given(epoch_lengths, batch_sizes)
def test_a_worker_keeps_what_its_windows_need(num_batches: int, batch: int) -> None:
    # The batches from the first to the last use of any window, in the order in which one worker makes them.
    number = num_batches // 2
    here = window(number, num_batches, batch)
    assert (here[-1] - here[0] + 1) * batch <= images_in_use(num_batches, batch, workers=0)
    assert images_in_use(num_batches, batch, 0, 8) >= (here[-1] - here[0] + 1) * len(part_of(0, batch))
    assert images_in_use(num_batches, batch, 8) <= images_in_use(num_batches, batch, 0) / 8 + batch


@given(batch_sizes, st.integers(0, 100_000))
def test_a_part_of_a_batch_is_one_for_all_its_images(batch: int, position: int) -> None:
    here = part_of(position, batch)
    assert position % batch in here
    assert all(part_of(other, batch) == here for other in here)
    assert 0 <= here[0] <= here[-1] < batch
    assert len(here) >= min(16, batch)


def test_epochs_and_samples_have_randomness_of_their_own() -> None:
    orders = {tuple(epoch_order(seed, epoch, 20)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    draws = {sample_random(seed, epoch, index).random() for seed in (0, 1) for epoch in (0, 1) for index in (0, 1)}
    assert len(draws) == 8
    assert sorted(epoch_order(0, 0, 20)) == list(range(20))
    assert tuple(epoch_order(0, 0, 20)) in orders


def requests(
    rank: int = 0, ranks: int = 1, epoch: int = 0, position: int = 0, mosaic: bool = True
) -> list[BatchRequest]:
    return batch_requests(10, 4, rank, ranks, epoch, position, mosaic)


def test_the_last_batch_runs_on_into_the_beginning() -> None:
    assert [list(request.positions) for request in requests()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_resuming_is_skipping_ahead() -> None:
    assert requests(epoch=3, position=8) == requests(epoch=3)[2:]
    assert len(requests(epoch=3, position=8)) == 1
    assert {(request.epoch, request.mosaic) for request in requests(epoch=4, mosaic=False)} == {(4, False)}


def test_ranks_share_each_batch() -> None:
    for request, *shares in zip(requests(), requests(0, 2), requests(1, 2), strict=True):
        assert list(request.positions) == [position for share in shares for position in share.positions]


def test_rectangular_batches_have_the_published_shapes() -> None:
    square, wide, tall = (640, 640), (480, 640), (640, 480)
    assert rectangular_batches(np.array([square]), 640, 1) == [([0], (672, 672))]
    assert rectangular_batches(np.array([wide, wide]), 640, 2) == [([0, 1], (512, 672))]
    assert rectangular_batches(np.array([tall, (1280, 960)]), 640, 2) == [([0, 1], (672, 512))]
    # The widest image of a batch decides; wide and tall together need the square.
    assert rectangular_batches(np.array([wide, (320, 640)]), 640, 2) == [([1, 0], (512, 672))]
    assert rectangular_batches(np.array([tall, wide]), 640, 2) == [([1, 0], (672, 672))]
    # Sorted by height / width, images of the same shape in their order.
    assert rectangular_batches(np.array([tall, wide, square, wide]), 320, 2) == [
        ([1, 3], (256, 352)),
        ([2, 0], (352, 352)),
    ]


@given(st.lists(st.tuples(st.integers(10, 4000), st.integers(10, 4000)), min_size=1, max_size=20), st.integers(1, 8))
def test_every_image_fits_into_its_rectangular_batch(sizes: list[tuple[int, int]], batch: int) -> None:
    batches = rectangular_batches(np.array(sizes), 320, batch)
    assert sorted(member for members, _ in batches for member in members) == list(range(len(sizes)))
    for members, (height, width) in batches:
        assert height % 32 == width % 32 == 0
        for member in members:
            ratio = 320 / max(sizes[member])
            assert sizes[member][0] * ratio <= height - 16
            assert sizes[member][1] * ratio <= width - 16
