"""Batches: the same for any number of workers and ranks, from any position on, and boxes that lead back."""

import collections
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.structures import Batch, Sample
from yoloyard.config.settings import AugmentConfig, TrainConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import Index, load_index
from yoloyard.data.loading import image_cache
from yoloyard.data.loading.batches import collate
from yoloyard.data.loading.loader import make_train_loader, make_val_loader

MakeSet = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

# Everything that is random is on, so that everything that is random is compared.
AUGMENT = AugmentConfig(degrees=10, shear=2, perspective=0.0005, flipud=0.3, mixup=0.3, mosaic=0.8, close_mosaic=1)


def config(**changes: object) -> TrainConfig:
    return dataclasses.replace(
        TrainConfig(batch=4, imgsz=64, workers=0, epochs=3, seed=9, augment=AUGMENT),
        **changes,  # type: ignore[arg-type]
    )


def same(first: Iterable[Batch], second: Iterable[Batch]) -> bool:
    """Whether two runs of batches are equal bit for bit."""
    return all(
        torch.equal(a.images, b.images)
        and torch.equal(a.boxes, b.boxes)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.ignore, b.ignore)
        and a.image_ids == b.image_ids
        and a.transforms == b.transforms
        for a, b in zip(first, second, strict=True)
    )


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """How often each file was decoded in this process."""
    counter: collections.Counter[str] = collections.Counter()
    decode = image_cache.decode_image

    def counting(path: Path, reduction: int, **options: Any) -> np.ndarray:
        counter[path.name] += 1
        return decode(path, reduction, **options)

    monkeypatch.setattr(image_cache, "decode_image", counting)
    return counter


def test_a_training_batch_has_the_agreed_form(index: Index) -> None:
    loader = make_train_loader(index, config())
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 6
    assert sorted(image for batch in batches for image in batch.image_ids) == list(range(24))
    for batch in batches:
        assert batch.images.shape == (4, 3, 64, 64)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert (batch.boxes.dtype, batch.labels.dtype, batch.ignore.dtype) == (torch.float32, torch.int64, torch.bool)
        real = batch.labels >= 0
        assert batch.boxes.shape == (*real.shape, 4)
        assert (batch.boxes[~real] == 0).all()
        boxes = batch.boxes[real]
        assert ((boxes >= 0) & (boxes <= 64)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (real.int().diff(dim=1) <= 0).all()  # padding comes last
        assert not batch.ignore.any()
    assert len({batch.boxes.shape[1] for batch in batches}) <= 4


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_samples_do_not_depend_on_the_number_of_workers(index: Index, workers: int) -> None:
    alone, shared = make_train_loader(index, config()), make_train_loader(index, config(workers=workers))
    for epoch in (0, 2):  # with mosaic and without
        assert same(alone.epoch(epoch), shared.epoch(epoch))


def test_samples_do_not_depend_on_how_workers_start(index: Index) -> None:
    # With the cache, so that everything that a worker can be handed goes the way to another process.
    spawned = make_train_loader(index, config(workers=1, cache="ram"), start_method="spawn")
    assert same(make_train_loader(index, config()).epoch(1), spawned.epoch(1))


def test_epochs_and_seeds_differ(index: Index) -> None:
    loader = make_train_loader(index, config())
    first = list(loader.epoch(0))
    assert same(first, loader.epoch(0))
    assert not same(first, loader.epoch(1))
    assert not same(first, make_train_loader(index, config(seed=10)).epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_skips_ahead(index: Index, workers: int) -> None:
    whole = list(make_train_loader(index, config()).epoch(1))
    loader = make_train_loader(index, config(workers=workers))
    assert same(whole[4:], loader.epoch(1, position=16))
    # An epoch that was left in its middle leaves nothing behind.
    abandoned = loader.epoch(0)
    next(abandoned)
    assert same(whole, loader.epoch(1))


def test_the_last_batch_is_filled_from_the_start(index: Index) -> None:
    loader = make_train_loader(index, config(batch=9))
    first, _, last = loader.epoch(0)
    assert last.image_ids[6:] == first.image_ids[:3]
    assert torch.equal(last.images[6:], first.images[:3])


def test_ranks_together_make_the_batch_of_one_process(index: Index) -> None:
    whole = make_train_loader(index, config()).epoch(0)
    ranks = [make_train_loader(index, config(), rank, world_size=2).epoch(0) for rank in (0, 1)]
    for batch, *shares in zip(whole, *ranks, strict=True):
        assert torch.equal(batch.images, torch.cat([share.images for share in shares]))
        assert batch.image_ids == [image for share in shares for image in share.image_ids]
        held = [share.boxes[share.labels >= 0] for share in shares]
        assert torch.equal(batch.boxes[batch.labels >= 0], torch.cat(held))


def test_closing_mosaic_changes_the_samples_and_restarts_no_worker(index: Index) -> None:
    changes = AugmentConfig(hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, close_mosaic=1)
    loader = make_train_loader(index, config(workers=2, augment=changes))
    before = set(multiprocessing.active_children())
    mosaics, still_mosaics, plain = (list(loader.epoch(epoch)) for epoch in range(3))
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    assert workers == set(multiprocessing.active_children()) - before

    def showing_its_whole_image(batches: list[Batch]) -> int:
        count = 0
        for batch in batches:
            for image, image_id in zip(batch.images, batch.image_ids, strict=True):
                whole = image_cache.load_resized(index, image_id, 64)
                top, left = (64 - whole.shape[0]) // 2, (64 - whole.shape[1]) // 2
                shown = image.permute(1, 2, 0).numpy()[top : top + whole.shape[0], left : left + whole.shape[1]]
                # Half a pixel of shift where the padding is odd.
                count += np.abs(shown.astype(int) - whole).mean() < 8
        return count

    assert showing_its_whole_image(plain) == 24
    assert showing_its_whole_image(mosaics) == 0
    assert showing_its_whole_image(still_mosaics) == 0


def test_one_process_decodes_each_image_about_once(make_set: MakeSet, decoded: collections.Counter[str]) -> None:
    index = load_index(read_data_yaml(make_set(1100, longest=24)), "train")
    augmented = dataclasses.replace(AUGMENT, mosaic=1.0)
    loader = make_train_loader(index, config(batch=16, imgsz=32, augment=augmented))
    images = loader.dataset.images
    for _ in loader.epoch(0):
        pass
    assert len(decoded) == 1100
    assert decoded.total() <= 1.05 * 1100
    assert isinstance(images, image_cache.RecentImages)
    assert len(images._images) <= images.capacity < 600  # a bounded memory


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_keep_to_their_own_images(make_set: MakeSet, decoded: collections.Counter[str], ranks: int) -> None:
    index = load_index(read_data_yaml(make_set(1152, longest=24)), "train")
    augmented = dataclasses.replace(AUGMENT, mosaic=1.0)
    for rank in range(ranks):
        for _ in make_train_loader(index, config(batch=64, imgsz=32, augment=augmented), rank, ranks).epoch(0):
            pass
    assert len(decoded) == 1152
    assert decoded.total() <= 1.05 * 1152


def test_the_memory_of_images_is_used_again_but_not_that_of_the_last_ones(index: Index) -> None:
    images = image_cache.RecentImages(index, 64, capacity=image_cache.IMAGES_OF_A_SAMPLE)
    for start in range(len(index) - 8):
        shown = [images[position] for position in range(start, start + 8)]
        for position, image in enumerate(shown, start):
            assert (image == image_cache.load_resized(index, position, 64)).all()
    assert len({id(image.base) for image in images._images.values()}) == 8


def test_cache_ram_gives_the_same_samples_without_decoding(index: Index, decoded: collections.Counter[str]) -> None:
    plain = list(make_train_loader(index, config()).epoch(0))
    decoded.clear()
    loader = make_train_loader(index, config(cache="ram"))
    assert decoded.total() == 24
    assert same(plain, loader.epoch(0))
    assert same(plain, make_train_loader(index, config(cache="ram", workers=2)).epoch(0))
    assert decoded.total() == 48  # once for each of the two loaders


def test_cache_ram_that_does_not_fit_is_refused(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "free_memory", lambda shared: 100_000)
    with pytest.raises(UserError, match=r"--cache ram needs 0\.0 GiB for 24 images at 64 px, but only .* are free"):
        make_train_loader(index, config(cache="ram"))
    with pytest.raises(UsageError, match="--cache tape: there are ram and disk"):
        make_train_loader(index, config(cache="tape"))


def test_free_memory_is_what_the_system_says() -> None:
    free = image_cache.free_memory()
    assert free is None or 2**20 < free < 2**50


def test_batches_that_cannot_be_made_are_refused(index: Index) -> None:
    with pytest.raises(UsageError, match="--batch 25 is more than the 24 images; use --batch 24"):
        make_train_loader(index, config(batch=25))
    with pytest.raises(UsageError, match="--batch 5 can't be shared evenly by 2 processes"):
        make_train_loader(index, config(batch=5), world_size=2)
    assert len(list(make_train_loader(index, config(batch=24)).epoch(0))) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_went_bad_is_named(index: Index, workers: int) -> None:
    index.paths[5].write_bytes(b"gone")
    for batches in (
        make_train_loader(index, config(workers=workers)).epoch(0),
        iter(make_val_loader(index, 64, 4, workers=workers)),
    ):
        # One line, without the traceback that the loader of torch would put in.
        with pytest.raises(UserError, match=r"^cannot read the image \S*0005\.png: not an image that can be decoded$"):
            list(batches)


def test_an_image_that_changed_its_size_is_named(index: Index) -> None:
    cv2.imwrite(str(index.paths[5]), np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(UserError, match=r"0005\.png has changed: it was .* and is 30x20"):
        list(make_train_loader(index, config()).epoch(0))


def test_workers_outlive_ctrl_c_and_a_killed_one_is_reported(index: Index) -> None:
    before = set(multiprocessing.active_children())
    loader = make_train_loader(index, config(workers=1))
    whole = list(loader.epoch(0))
    (worker,) = set(multiprocessing.active_children()) - before
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGINT)
    assert same(whole, loader.epoch(0))
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with pytest.raises(UserError, match="a process that loads images has died"):
        list(loader.epoch(0))


def test_workers_end_with_their_loader(index: Index) -> None:
    before = set(multiprocessing.active_children())
    loader = make_train_loader(index, config(workers=2))
    next(loader.epoch(0))
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    del loader
    assert set(multiprocessing.active_children()) <= before


def test_a_program_ends_at_once_with_its_workers_alive(make_set: MakeSet) -> None:
    program = """
import atexit
workers = []
atexit.register(lambda: print([worker.exitcode for worker in workers]))  # the first one in, so the last one called
import multiprocessing, pathlib, sys
from yoloyard.config.settings import TrainConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import load_index
from yoloyard.data.loading.loader import make_train_loader
index = load_index(read_data_yaml(pathlib.Path(sys.argv[1])), "train")
loader = make_train_loader(index, TrainConfig(batch=4, imgsz=64, workers=1), start_method="fork")
print(len(list(loader.epoch(0))))
workers += multiprocessing.active_children()
"""
    done = subprocess.run([sys.executable, "-c", program, str(make_set())], capture_output=True, text=True, check=False)
    # multiprocessing sends SIGTERM and waits; a worker that ignores this one, too, would keep it waiting.
    assert (done.returncode, done.stdout) == (0, "6\n[0]\n"), done.stderr


def with_ignored(index: Index) -> Index:
    """The same index with every third box to be ignored."""
    return dataclasses.replace(index, ignore=np.arange(len(index.ignore)) % 3 == 0, file=None)


def test_training_drops_ignored_boxes_and_validation_marks_them(index: Index) -> None:
    index = with_ignored(index)
    still = AugmentConfig(mosaic=0, translate=0, scale=0, fliplr=0)
    training = make_train_loader(index, config(augment=still, batch=24)).epoch(0)
    assert sum(int((batch.labels >= 0).sum()) for batch in training) == (~index.ignore).sum()
    for batch in make_val_loader(index, 64, 4):
        for row, image_id in enumerate(batch.image_ids):
            _, labels, ignore = index.annotations(image_id)
            count = len(labels)
            assert batch.labels[row, :count].tolist() == labels.tolist()
            assert batch.ignore[row, :count].tolist() == ignore.tolist()
            assert (batch.labels[row, count:] == -1).all()
            assert not batch.ignore[row, count:].any()


@pytest.mark.parametrize("imgsz", [32, 64])
def test_validation_boxes_lead_back_to_the_original(index: Index, imgsz: int) -> None:
    seen = []
    for batch in make_val_loader(index, imgsz, 5):
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert all(side % 32 == 0 for side in batch.images.shape[2:])
        for row, (image_id, transform) in enumerate(zip(batch.image_ids, batch.transforms, strict=True)):
            seen.append(image_id)
            assert transform is not None
            assert [transform.original_height, transform.original_width] == index.sizes[image_id].tolist()
            boxes, _, _ = index.annotations(image_id)
            back = transform.to_original(batch.boxes[row, : len(boxes)])
            np.testing.assert_allclose(back, boxes, atol=1e-4)
            # The image lies where the transform says: grey around it, its own pixels inside.
            whole = image_cache.load_resized(index, image_id, imgsz)
            top, left = int(transform.pad_top), int(transform.pad_left)
            shown = batch.images[row].permute(1, 2, 0).numpy()
            assert (shown[top : top + whole.shape[0], left : left + whole.shape[1]] == whole).all()
            assert (shown[:top] == 114).all()
            assert (shown[:, :left] == 114).all()
    assert sorted(seen) == list(range(24))


def test_validation_is_shared_out_without_changing_a_batch(index: Index) -> None:
    whole = list(make_val_loader(index, 64, 5))
    for workers in (0, 2):
        loaders = [make_val_loader(index, 64, 5, workers=workers, rank=rank, world_size=2) for rank in (0, 1)]
        assert [len(loader) for loader in loaders] == [3, 2]
        assert same(whole[0::2], loaders[0])
        assert same(whole[1::2], loaders[1])
        assert same(whole[1::2], loaders[1])  # and again in the next epoch


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 100])
def test_parts_of_a_validation_batch_keep_its_shape(index: Index, at_once: int) -> None:
    def images(at_once: int | None, rank: int = 0, ranks: int = 1) -> dict[int, np.ndarray]:
        loader = make_val_loader(index, 64, 5, at_once=at_once, rank=rank, world_size=ranks)
        batches = list(loader)
        assert max(len(batch.image_ids) for batch in batches) <= (at_once or 5)
        return {i: image.numpy() for batch in batches for i, image in zip(batch.image_ids, batch.images, strict=True)}

    whole, parts = images(None), images(at_once)
    shared = images(at_once, 0, 2), images(at_once, 1, 2)
    assert len(shared[0]) + len(shared[1]) == len(whole) == len(index)
    for found in (parts, shared[0] | shared[1]):
        assert found.keys() == whole.keys()
        assert all(np.array_equal(found[i], image) for i, image in whole.items())


def test_boxes_are_padded_to_few_sizes() -> None:
    def sample(count: int) -> Sample:
        boxes = np.ones((count, 4), np.float32)
        return Sample(np.zeros((2, 4, 3), np.uint8), boxes, np.zeros(count, np.int64), np.zeros(count, bool), count)

    batch = collate([sample(3), sample(9), sample(0)], (8, 16, 64))
    assert batch.boxes.shape == (3, 16, 4)
    assert (batch.labels >= 0).sum(dim=1).tolist() == [3, 9, 0]
    assert batch.image_ids == [3, 9, 0]
