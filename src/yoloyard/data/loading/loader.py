"""Loaders of training and validation batches, which come from worker processes or are made in this one."""

import functools
import logging
import multiprocessing
import multiprocessing.util
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.synchronize import Event
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.image_size import ImageSize, shape_of
from yoloyard.common.structures import Batch
from yoloyard.config.settings import TrainConfig
from yoloyard.data.index.index import Index
from yoloyard.data.loading.batches import Images, TrainingBatches, ValidationBatches, ValRequest
from yoloyard.data.loading.epoch_plan import EpochPlan, plan_epochs
from yoloyard.data.loading.image_cache import (
    RecentFullImages,
    RecentImages,
    TileImages,
    cached_in_memory,
    cached_on_disk,
)
from yoloyard.data.loading.limits import batch_bytes, possible_workers, shortage
from yoloyard.data.loading.sampling import (
    IMAGES_OF_A_BATCH,
    KEPT_BYTES,
    BatchRequest,
    batch_requests,
    images_in_use,
    num_lanes,
    rectangular_batches,
    tile_batches,
)
from yoloyard.data.pixels.transform import Transform

log = logging.getLogger(__name__)


class Loader(DataLoader):
    """Batches of at most `largest` bytes. The workers live as long as the loader.

    A line says so if /dev/shm is too small for the batches, which then come through pipes.
    An iteration raises UserError naming the file if an image can't be read.
    """

    dataset: TrainingBatches | ValidationBatches

    def __init__(
        self,
        dataset: TrainingBatches | ValidationBatches,
        sampler: list[BatchRequest] | list[ValRequest],
        workers: int,
        pin_memory: bool,
        start_method: str | None,
        largest: int,
    ) -> None:
        workers, fewer = possible_workers(workers)
        too_little = shortage(largest, workers)
        for line in filter(None, (fewer, too_little)):
            log.info(line)
        ending = multiprocessing.get_context(start_method).Event()
        super().__init__(
            dataset,
            sampler=sampler,
            batch_size=None,  # a request is a whole batch
            collate_fn=_by_value if too_little else None,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=functools.partial(_start_worker, ending),
            generator=torch.Generator(),  # torch's loader draws a seed that we don't use; not from the trainer's
            multiprocessing_context=start_method if workers else None,
        )
        # Run before multiprocessing sends SIGTERM to what is left at the end of the program.
        multiprocessing.util.Finalize(self, ending.set, exitpriority=0)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            for batch in super().__iter__():
                if isinstance(batch, UserError):
                    # A new one: an exception that is a variable of this frame would keep it, and the workers, alive.
                    raise UserError(str(batch))
                yield batch
        except RuntimeError as error:
            if not any(words in str(error) for words in ("exited unexpectedly", "is killed by signal")):
                raise
            raise UserError(
                f"a process that loads images has died, perhaps of too little memory; try fewer --workers ({error})"
            ) from error


class TrainLoader(Loader):
    """Training batches; `epoch` gives those of one epoch."""

    dataset: TrainingBatches
    sampler: list[BatchRequest]
    rank = 0
    world_size = 1
    left_out: tuple[int, ...] = ()  # images in whose places others come

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.dataset.plan.num_batches

    def epoch(self, epoch: int, position: int = 0, epochs: int | None = None) -> Iterator[Batch]:
        """The batches of `epoch` (from 0), beginning after `position` images of it (all ranks together).

        The last `close_mosaic` of all `epochs` (by default those of the config) have neither mosaic nor mixup.
        """
        self.sampler[:] = self.requests(epoch, position, epochs)
        yield from self

    def requests(self, epoch: int, position: int = 0, epochs: int | None = None) -> list[BatchRequest]:
        """What `epoch` asks for, with the same arguments: this rank's share of each batch."""
        plan, config = self.dataset.plan, self.dataset.config
        mosaic = epoch < (epochs or config.epochs) - config.augment.close_mosaic
        requests = batch_requests(len(plan), plan.batch, self.rank, self.world_size, epoch, position, mosaic)
        return [replace(request, left_out=self.left_out) for request in requests]


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
    """Loader of a rank's share of each training batch: (batch / ranks, channels, height, width), no ignored boxes.

    With `--rect` height and width are multiples of `stride` instead. `start_method` of the workers: fork, spawn or
    forkserver; None is the system's usual one. Raises UsageError if the batch is larger than the data set or can't be
    shared evenly, UserError if the cache doesn't fit or can't be written.
    """
    if config.batch > len(index):
        raise UsageError(f"--batch {config.batch} is more than the {len(index)} images; use --batch {len(index)}")
    whole, imgsz = index.whole, config.imgsz if index.tiling is None else None  # what is decoded, at which size
    if config.batch % world_size:
        raise UsageError(f"--batch {config.batch} can't be shared evenly by {world_size} processes")
    plan = plan_epochs(index, config, stride)
    are_forked = multiprocessing.get_context(start_method).get_start_method() == "fork"
    images: Images
    if config.cache is None:
        # Beyond this some images are decoded again; the samples stay the same.
        of_a_worker = KEPT_BYTES // max(1, config.workers)
        if imgsz is not None:
            affordable = of_a_worker // index.pixels.image_bytes(*shape_of(imgsz))
            in_use = images_in_use(plan.num_batches, config.batch, config.workers, world_size)
            images = RecentImages(whole, imgsz, min(in_use, affordable))
        else:
            if reason := decoded_again(plan, len(whole), config.workers, world_size):
                size = f"{whole.mean_bytes() / 1e6:.0f} MB"
                log.info(f"images of {size} are decoded several times an epoch, since {reason}")
            images = RecentFullImages(whole, of_a_worker)
    elif config.cache == "ram":
        images = cached_in_memory(whole, imgsz, shared=not are_forked)
    elif config.cache == "disk":
        images = cached_on_disk(whole, imgsz)
    else:
        raise UsageError(f"--cache {config.cache}: there are ram and disk")
    if index.tiling is not None:
        images = TileImages(index, config.imgsz, images)
    if transform is not None and config.workers and not are_forked:
        transform.check_spawn()
    dataset = TrainingBatches(index, images, config, plan, transform)
    height, width = (side + (stride if config.rect else 0) for side in shape_of(config.imgsz))
    largest = batch_bytes(config.batch // world_size, (height, width), dataset.buckets[-1], index.pixels)
    loader = TrainLoader(dataset, [], config.workers, pin_memory, start_method, largest)
    loader.rank, loader.world_size = rank, world_size
    return loader


def decoded_again(plan: EpochPlan, images: int, workers: int, world_size: int) -> str:
    """Why so many images are decoded more than once an epoch for their tiles, and what helps; "" where they aren't."""
    workers = max(1, workers)
    kept, (stride, parts) = plan.kept // workers, num_lanes(plan.batch, plan.kept)
    once = "--cache disk decodes each once"
    if kept >= images:
        return ""
    if kept < IMAGES_OF_A_BATCH:
        return f"only {kept} of them may lie in the memory of a worker: {once}; fewer --workers helps, too"
    if stride % workers:
        return f"{workers} workers need the same ones: {once}; --workers {stride} helps, too"
    return f"{world_size} processes need the same ones: {once}" if parts % world_size else ""


def make_val_loader(
    index: Index,
    imgsz: ImageSize,
    batch: int,
    stride: int = 32,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    start_method: str | None = None,
    at_once: int | None = None,
    fixed_shape: tuple[int, int] | None = None,
) -> Loader:
    """Loader of a rank's validation batches, the same at each iteration; over all ranks every image comes once.

    Images of similar shapes come together, in batches that are as small as they can be; `batch` decides the shapes,
    unless all have one `fixed_shape` (H, W), the size of `imgsz`. Tiles have that shape, and those of an image come
    together, in one rank. A batch of more than `at_once` images (equal in all ranks) comes in parts of that size, which
    keep its shape, so that neither parts nor ranks change the figures. `image_ids` are positions in the index;
    `transforms` lead from the batch's pixels to those of the original image.
    """
    part = min(batch, at_once or batch)
    requests: list[ValRequest]
    if index.tiling is not None:
        tiles = tile_batches(index.tiling.sources, part, workers, rank, world_size)
        requests = [(members, fixed_shape or shape_of(imgsz)) for members in tiles]
    else:
        requests = [
            (members[start : start + part], fixed_shape or shape)
            for members, shape in rectangular_batches(index.sizes, imgsz, batch, stride)
            for start in range(0, len(members), part)
        ][rank::world_size]
    dataset = ValidationBatches(index, imgsz)
    sizes = [batch_bytes(len(members), shape, dataset.buckets[-1], index.pixels) for members, shape in requests]
    return Loader(dataset, requests, workers, pin_memory, start_method, max(sizes, default=0))


class _BatchByValue(Batch):
    """A batch that is pickled with its numbers; torch would move its tensors to shared memory and pickle handles."""

    def __reduce__(self) -> Any:
        tensors = (self.images.permute(0, 2, 3, 1), self.boxes, self.labels, self.ignore)
        arrays = [tensor.numpy() for tensor in tensors]
        return _from_arrays, (arrays, self.image_ids, self.transforms, self.source_ids)


def _by_value(item: Any) -> Any:
    return _BatchByValue(**vars(item)) if isinstance(item, Batch) else item


def _from_arrays(arrays: list[np.ndarray], *rest: Any) -> Batch:
    images, boxes, labels, ignore = map(torch.from_numpy, arrays)
    return Batch(images.permute(0, 3, 1, 2), boxes, labels, ignore, *rest)


def _start_worker(ending: Event, worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the trainer decides what it means and ends the workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # so does this one, which asks the trainer to save
    # So does SIGTERM where a cluster stops a job: the trainer still needs its batch then, and torch's handler would
    # interrupt it while it saves if a worker ended. A worker ends with its loader or, since torch's workers look after
    # their parent, within seconds after a trainer that is killed.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.is_set() else None)
    # The workers share the cores among them, and OpenCV's threads do not survive a fork.
    cv2.setNumThreads(0)
