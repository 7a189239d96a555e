"""Batches for training and validation, made by worker processes or in this one.

Shapes: B images of a batch, M boxes an image (padded), H W pixels.
A training sample depends on (seed, epoch, index) and the config alone, never on the number of workers or ranks.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import multiprocessing
import multiprocessing.util
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.structures import Batch, Sample
from yoloyard.config.settings import TrainConfig
from yoloyard.data.index.index import Index
from yoloyard.data.loading.descriptors import possible_workers
from yoloyard.data.loading.disk_cache import DiskImages, cached_on_disk
from yoloyard.data.loading.epoch_plan import EpochOrder, EpochPlan, plan_epochs
from yoloyard.data.loading.image_cache import AllImages, RecentImages
from yoloyard.data.loading.sampling import (
    BatchRequest,
    TrainSampler,
    images_in_use,
    part_of,
    rectangular_batches,
    sample_random,
    window,
)
from yoloyard.data.loading.shared_memory import batch_bytes, by_value, shortage
from yoloyard.data.pixels import augment
from yoloyard.data.pixels.transform import Transform

log = logging.getLogger(__name__)

KEPT_BYTES = 2 * 2**30  # of decoded images, over all workers of a process that trains


Images = RecentImages | AllImages | DiskImages


class TrainLoader:
    """Training batches; `epoch` gives those of one epoch. The workers live as long as the loader."""

    def __init__(self, batches: DataLoader, sampler: TrainSampler, config: TrainConfig) -> None:
        self._batches, self._sampler, self._config = batches, sampler, config

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return math.ceil(self._sampler.count / self._sampler.batch)

    def epoch(self, epoch: int, position: int = 0, epochs: int | None = None) -> Iterator[Batch]:
        """The batches of `epoch` (from 0), beginning after `position` images of it (all ranks together).

        `epochs`: how many there will be, where that isn't what the config says. Raises UserError naming the file if
        an image can't be read.
        """
        self._sampler.begin(epoch, position, mosaic_is_on(self._config, epoch, epochs or self._config.epochs))
        yield from _receive(self._batches)


class ValLoader:
    """Validation batches, the same at each iteration; over all ranks every image comes exactly once."""

    def __init__(self, batches: DataLoader) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return _receive(self._batches)


def mosaic_is_on(config: TrainConfig, epoch: int, epochs: int) -> bool:
    """Whether `epoch` (from 0) of `epochs` still has mosaic and mixup: the last `close_mosaic` have not."""
    return epoch < epochs - config.augment.close_mosaic


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
    dataset = TrainingBatches(index, images, config, plan, transform)
    if transform is not None and config.workers and _method(start_method) != "fork":
        transform.check_spawn()
    side = config.imgsz + (stride if config.rect else 0)
    largest = batch_bytes(sampler.share, side, side, dataset.capacities[-1])
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

    `batch` decides the shapes. A batch of more than `at_once` images, the same in all ranks, comes in parts of so many
    and keeps its shape, so that neither these nor the ranks change the figures. `image_ids` are positions in the index;
    `transforms` lead from the batch's pixels to the original's.
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
    images = _images(index, imgsz, cache, kept=0, start_method=start_method)
    dataset = ValidationBatches(index, images)
    sampler = requests[rank::world_size]
    largest = max(batch_bytes(len(each.image_ids), *each.shape, dataset.capacities[-1]) for each in requests)
    return ValLoader(_data_loader(dataset, sampler, workers, pin_memory, start_method, largest))


class TrainingBatches(Dataset[Batch | UserError]):
    """Makes the training batches that it is asked for. Runs in the workers."""

    def __init__(
        self,
        index: Index,
        images: Images,
        config: TrainConfig,
        plan: EpochPlan,
        transform: Transform | None = None,
    ) -> None:
        self.index, self.images, self.config, self.plan, self.transform = index, images, config, plan, transform
        self.capacities = _training_capacities(index, config)
        self._order: tuple[int, EpochOrder] | None = None

    def __getitem__(self, request: BatchRequest) -> Batch | UserError:
        # An error is handed over as a value: raised here, the loader would wrap it in a traceback.
        try:
            height, width = self._epoch_order(request.epoch).shapes[request.positions[0] // self.config.batch].tolist()
            images = np.empty((len(request.positions), height, width, 3), np.uint8)
            pairs = zip(request.positions, images, strict=True)
            samples = [self._sample(request, position, image) for position, image in pairs]
        except UserError as error:
            return error
        return collate(samples, self.capacities, images)

    def _sample(self, request: BatchRequest, position: int, image: np.ndarray) -> Sample:
        """The sample at a position of the epoch, its image written into `image` (H, W, 3)."""
        order = self._epoch_order(request.epoch)
        height, width = image.shape[:2]
        position %= len(order.images)
        index, copy = int(order.images[position]), int(order.copies[position])
        random = sample_random(self.config.seed, request.epoch, index, copy)
        sample = self._placed(index, position, (height, width), request, random)
        if request.mosaic and random.random() < self.config.augment.mixup:
            (partner,) = self._partners(1, position, request, random)
            other = self._placed(partner, position, (height, width), request, random)
            sample = augment.mixup(sample, other, random)
        if self.transform is not None:
            sample = self.transform(sample, random, len(self.index.names), self.index.paths[index])
        colours = augment.draw_colours(self.config.augment, random)
        sample = augment.flip(sample, self.config.augment, random, image)
        if colours is not None:
            augment.adjust_colours(image, colours)
        return sample

    def _placed(
        self, index: int, position: int, shape: tuple[int, int], request: BatchRequest, random: np.random.Generator
    ) -> Sample:
        """Image `index`, in a mosaic or alone, moved onto an output of `shape` (H, W)."""
        imgsz, config = self.config.imgsz, self.config.augment
        sample = self._load(index)
        if request.mosaic and random.random() < config.mosaic:
            partners = self._partners(3, position, request, random)
            canvas = (2 * imgsz, 2 * imgsz)
            tiles = augment.mosaic_tiles([sample, *(self._load(partner) for partner in partners)], imgsz, random)
        else:
            canvas = sample.image.shape[:2]
            tiles = [augment.Tile(sample, 0, 0, (0, 0, canvas[1], canvas[0]))]
        matrix, zoom = augment.draw_affine(*canvas, shape, config, random)
        return augment.place(tiles, canvas, matrix, zoom, shape)

    def _partners(self, count: int, position: int, request: BatchRequest, random: np.random.Generator) -> list[int]:
        batch = self.config.batch
        numbers, part = window(position // batch, self.plan.num_batches, batch), part_of(position, batch)
        drawn = random.integers(0, len(numbers) * len(part), count)
        order = self._epoch_order(request.epoch).images
        places = (numbers[draw // len(part)] * batch + part[draw % len(part)] for draw in drawn)
        return [int(order[place % len(order)]) for place in places]

    def _load(self, index: int) -> Sample:
        """An image with its long side imgsz and its boxes, without those to be ignored."""
        image = self.images[index]
        boxes, labels, ignore = self.index.annotations(index)
        boxes *= _box_scale(image, self.index.sizes[index])
        return Sample(image, boxes[~ignore], labels[~ignore], ignore[~ignore], index, source_ids=(index,))

    def _epoch_order(self, epoch: int) -> EpochOrder:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self.plan.order(epoch))
        return self._order[1]


@dataclass(frozen=True)
class ValRequest:
    """A validation batch: which images, and the (H, W) that they are fitted into."""

    image_ids: tuple[int, ...]
    shape: tuple[int, int]


class ValidationBatches(Dataset[Batch | UserError]):
    """Makes the validation batches that it is asked for. Runs in the workers."""

    def __init__(self, index: Index, images: Images) -> None:
        self.index, self.images = index, images
        counts = np.diff(index.offsets)
        self.capacities = _capacities(float(counts.mean()), int(counts.max()))

    def __getitem__(self, request: ValRequest) -> Batch | UserError:
        try:
            samples = [self._sample(image_id, request.shape) for image_id in request.image_ids]
        except UserError as error:
            return error
        return collate(samples, self.capacities)

    def _sample(self, image_id: int, shape: tuple[int, int]) -> Sample:
        height, width = (int(side) for side in self.index.sizes[image_id])
        image, transform = augment.letterbox(
            self.images[image_id], shape, enlarge=False, original_shape=(height, width)
        )
        boxes, labels, ignore = self.index.annotations(image_id)
        boxes *= np.array([transform.scale_x, transform.scale_y] * 2, np.float32)
        boxes += np.array([transform.pad_left, transform.pad_top] * 2, np.float32)
        return Sample(image, boxes, labels, ignore, image_id, transform)


def collate(samples: Sequence[Sample], capacities: Sequence[int], images: np.ndarray | None = None) -> Batch:
    """Samples of one size as a Batch; boxes are padded to the smallest of the ascending `capacities` that will do.

    Where a transform has added boxes, the largest capacity may be too small; it is doubled then. `images` (B, H, W, 3)
    are the samples' images where they lie in one array already, in the order of memory that channels_last has.
    """
    most = max(len(sample.labels) for sample in samples)
    larger = (capacities[-1] * 2**doubled for doubled in itertools.count(1))
    capacity = next(size for size in itertools.chain(capacities, larger) if size >= most)
    if images is None:
        images = np.stack([sample.image for sample in samples])
    boxes = np.zeros((len(samples), capacity, 4), np.float32)
    labels = np.full((len(samples), capacity), -1, np.int64)
    ignore = np.zeros((len(samples), capacity), bool)
    for row, sample in enumerate(samples):
        count = len(sample.labels)
        boxes[row, :count], labels[row, :count], ignore[row, :count] = sample.boxes_xyxy, sample.labels, sample.ignore
    return Batch(
        images=torch.from_numpy(images).permute(0, 3, 1, 2),
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(labels),
        ignore=torch.from_numpy(ignore),
        image_ids=[sample.image_id for sample in samples],
        transforms=[sample.transform for sample in samples],
        source_ids=tuple(dict.fromkeys(source for sample in samples for source in sample.source_ids)),
    )


def _training_capacities(index: Index, config: TrainConfig) -> tuple[int, ...]:
    counts = np.diff(index.offsets)
    images = (4 if config.augment.mosaic else 1) * (2 if config.augment.mixup else 1)
    return _capacities(4 * float(counts.mean()), images * int(counts.max()))


def _capacities(typical: float, largest: int) -> tuple[int, ...]:
    """At most 4 numbers of boxes to pad to, in equal ratios from a typical count to the largest, multiples of 8."""
    last = 8 * math.ceil(max(largest, 1) / 8)
    first = min(8 * math.ceil(max(typical, 1) / 8), last)
    middle = (8 * math.ceil(first * (last / first) ** (step / 3) / 8) for step in (1, 2))
    return tuple(sorted({first, *middle, last}))


def _box_scale(image: np.ndarray, size: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return np.array([width / size[1], height / size[0]] * 2, np.float32)


def _images(
    index: Index,
    imgsz: int,
    cache: str | None,
    kept: int,
    start_method: str | None,
    reduced: bool = False,
) -> Images:
    if cache is None:
        return RecentImages(index, imgsz, kept, reduced)
    if cache == "ram":
        return AllImages(index, imgsz, _method(start_method) != "fork", reduced)
    if cache == "disk":
        return cached_on_disk(index, imgsz, reduced)
    raise UsageError(f"--cache {cache}: there are ram and disk")


def _method(start_method: str | None) -> str:
    return start_method or multiprocessing.get_context().get_start_method()


def _data_loader(
    dataset: Dataset,
    sampler: Sampler | list[ValRequest],
    workers: int,
    pin_memory: bool,
    start_method: str | None,
    largest: int,
) -> DataLoader:
    workers, fewer = possible_workers(workers)
    if fewer:
        log.info(fewer)
    if line := shortage(largest, workers):
        log.info(line)
    ending = multiprocessing.get_context(start_method).Event()
    loader = DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,  # a request is a whole batch
        collate_fn=by_value if line else _as_it_is,
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


def _as_it_is(batch: Any) -> Any:
    return batch


def _receive(loader: DataLoader) -> Iterator[Batch]:
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                # A new one: an exception that its own frame refers to would keep the workers alive.
                raise UserError(str(batch))
            yield batch
    except RuntimeError as error:
        if not any(words in str(error) for words in ("exited unexpectedly", "is killed by signal")):
            raise
        message = f"a process that loads images has died, perhaps for want of memory; try fewer --workers ({error})"
        raise UserError(message) from error
