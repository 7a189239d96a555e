"""Loaders of training and validation batches, which come from worker processes or are made in this one.

A training sample depends on (seed, epoch, image, repeat) and the settings alone, never on the number of workers or
ranks.
"""

from __future__ import annotations

import functools
import logging
import math
import multiprocessing
import multiprocessing.util
import os
import signal
from collections.abc import Iterator
from multiprocessing.synchronize import Event

import cv2
import torch
from torch.utils.data import DataLoader

from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.structures import Batch
from yoloyard.config.settings import TrainConfig
from yoloyard.data.index.index import Index
from yoloyard.data.loading.batches import Images, TrainingBatches, ValidationBatches, ValRequest
from yoloyard.data.loading.descriptors import possible_workers
from yoloyard.data.loading.disk_cache import cached_on_disk
from yoloyard.data.loading.epoch_plan import plan_epochs
from yoloyard.data.loading.image_cache import AllImages, RecentImages
from yoloyard.data.loading.sampling import TrainSampler, images_in_use, rectangular_batches
from yoloyard.data.loading.shared_memory import batch_bytes, by_value, shortage
from yoloyard.data.pixels.transform import Transform

log = logging.getLogger(__name__)

KEPT_BYTES = 2 * 2**30  # of decoded images, over all workers of a process that trains


class TrainLoader:
    """Training batches; `epoch` gives those of one epoch. The workers live as long as the loader."""

    def __init__(self, batches: DataLoader, sampler: TrainSampler, config: TrainConfig) -> None:
        self._batches, self._sampler, self._config = batches, sampler, config

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return math.ceil(self._sampler.count / self._sampler.batch)

    def epoch(self, epoch: int, position: int = 0, epochs: int | None = None) -> Iterator[Batch]:
        """The batches of `epoch` (from 0), beginning after `position` images of it (all ranks together).

        The last `close_mosaic` of all `epochs` (by default those of the config) have neither mosaic nor mixup.
        Raises UserError naming the file if an image can't be read.
        """
        config = self._config
        mosaic = epoch < (epochs or config.epochs) - config.augment.close_mosaic
        self._sampler.begin(epoch, position, mosaic)
        yield from _receive(self._batches)


class ValLoader:
    """Validation batches, the same at each iteration; over all ranks every image comes exactly once."""

    def __init__(self, batches: DataLoader) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return _receive(self._batches)


def make_train_loader(
    index: Index,
    config: TrainConfig,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    start_method: str | None = None,
    stride: int = 32,
    transform: Transform | None = None,
) -> TrainLoader:
    """Loader of a rank's share of each training batch: uint8 (batch / ranks, 3, imgsz, imgsz), no ignored boxes.

    With `--rect` height and width are multiples of `stride` instead.
    `start_method`: fork, spawn or forkserver for the workers; None is the system's usual one. `transform`: the user's.
    A line says so if /dev/shm is too small for the batches, which then come through pipes.
    Raises UsageError if the batch is larger than the data set or can't be shared evenly, UserError if
    the cache doesn't fit or can't be written.
    """
    if config.batch > len(index):
        raise UsageError(f"--batch {config.batch} is more than the {len(index)} images; use --batch {len(index)}")
    if config.batch % world_size:
        raise UsageError(f"--batch {config.batch} can't be shared evenly by {world_size} processes")
    plan = plan_epochs(index, config, stride)
    sampler = TrainSampler(len(plan), config.batch, rank, world_size)
    # Beyond this some images are decoded again; the samples stay the same.
    affordable = KEPT_BYTES // (max(1, config.workers) * 3 * config.imgsz**2)
    kept = min(images_in_use(len(sampler), config.batch, config.workers, world_size), affordable)
    images = _images(index, config.imgsz, config.cache, kept, start_method, reduced=True)
    if transform is not None and config.workers and not _are_forked(start_method):
        transform.check_spawn()
    dataset = TrainingBatches(index, images, config, plan, transform)
    side = config.imgsz + (stride if config.rect else 0)
    largest = batch_bytes(sampler.share, side, side, dataset.buckets[-1])
    batches = _data_loader(dataset, sampler, config.workers, pin_memory, start_method, largest)
    return TrainLoader(batches, sampler, config)


def make_val_loader(
    index: Index,
    imgsz: int,
    batch: int,
    stride: int = 32,
    rect: bool = True,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    cache: str | None = None,
    pin_memory: bool = False,
    start_method: str | None = None,
    at_once: int | None = None,
) -> ValLoader:
    """Loader of a rank's validation batches; `rect`: of similar shapes together, each as small as it can be.

    `batch` decides the shapes. A batch of more than `at_once` images (equal in all ranks) comes in parts of that size,
    which keep its shape, so that neither parts nor ranks change the figures. `image_ids` are positions in the index;
    `transforms` lead from the batch's pixels to those of the original image.
    """
    if rect:
        shaped = rectangular_batches(index.sizes, imgsz, batch, stride)
    else:
        ids = range(len(index))
        shaped = [(list(ids[start : start + batch]), (imgsz, imgsz)) for start in range(0, len(ids), batch)]
    part = min(batch, at_once or batch)
    requests = [
        ValRequest(tuple(members[start : start + part]), shape)
        for members, shape in shaped
        for start in range(0, len(members), part)
    ]
    dataset = ValidationBatches(index, _images(index, imgsz, cache, kept=0, start_method=start_method))
    largest = max(batch_bytes(len(each.image_ids), *each.shape, dataset.buckets[-1]) for each in requests)
    return ValLoader(_data_loader(dataset, requests[rank::world_size], workers, pin_memory, start_method, largest))


def _images(
    index: Index, imgsz: int, cache: str | None, kept: int, start_method: str | None, reduced: bool = False
) -> Images:
    if cache is None:
        return RecentImages(index, imgsz, kept, reduced)
    if cache == "ram":
        return AllImages(index, imgsz, not _are_forked(start_method), reduced)
    if cache == "disk":
        return cached_on_disk(index, imgsz, reduced)
    raise UsageError(f"--cache {cache}: there are ram and disk")


def _are_forked(start_method: str | None) -> bool:
    return multiprocessing.get_context(start_method).get_start_method() == "fork"


def _data_loader(
    dataset: TrainingBatches | ValidationBatches,
    sampler: TrainSampler | list[ValRequest],
    workers: int,
    pin_memory: bool,
    start_method: str | None,
    largest: int,
) -> DataLoader:
    """torch's loader, whose batches have at most `largest` bytes."""
    workers, fewer = possible_workers(workers)
    too_little = shortage(largest, workers)
    for line in filter(None, (fewer, too_little)):
        log.info(line)
    ending = multiprocessing.get_context(start_method).Event()
    loader = DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,  # a request is a whole batch
        collate_fn=by_value if too_little else None,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=functools.partial(_start_worker, ending),
        generator=torch.Generator(),  # the loader of torch draws a seed that we don't use; not from the trainer's
        multiprocessing_context=start_method if workers else None,
    )
    # Run before multiprocessing sends SIGTERM to what is left at the end of the program.
    multiprocessing.util.Finalize(loader, ending.set, exitpriority=0)
    return loader


def _start_worker(ending: Event, worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the trainer decides what it means and ends the workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # So does SIGTERM where a cluster stops a job: the trainer still needs its batch then, and torch's handler would
    # interrupt it while it saves if a worker ended. A worker ends with its loader or, since torch's workers look after
    # their parent, within seconds after a trainer that is killed.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.is_set() else None)
    # The workers share the cores among them, and OpenCV's threads do not survive a fork.
    cv2.setNumThreads(0)


def _receive(loader: DataLoader) -> Iterator[Batch]:
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                # A new exception: one that is a variable of this frame would keep the frame, and so the workers, alive.
                raise UserError(str(batch))
            yield batch
    except RuntimeError as error:
        if not any(words in str(error) for words in ("exited unexpectedly", "is killed by signal")):
            raise
        message = f"a process that loads images has died, perhaps of too little memory; try fewer --workers ({error})"
        raise UserError(message) from error
