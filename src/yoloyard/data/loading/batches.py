"""Training and validation batches, made one at a time; this runs in the workers."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from yoloyard.common.errors import UserError
from yoloyard.common.image_size import ImageSize, shape_of
from yoloyard.common.structures import Batch, Sample
from yoloyard.config.settings import TrainConfig
from yoloyard.data.index.index import Index
from yoloyard.data.loading.epoch_plan import EpochOrder, EpochPlan
from yoloyard.data.loading.image_cache import AllImages, RecentFullImages, RecentImages, TileImages, load_resized
from yoloyard.data.loading.sampling import BatchRequest, part_of, sample_random, window
from yoloyard.data.pixels import augment, channels, line
from yoloyard.data.pixels.transform import Transform

PASTE_TRIES = 8  # images of which the first with a box gives what is pasted
Images = RecentImages | RecentFullImages | AllImages | TileImages
ValRequest = tuple[list[int], tuple[int, int]]  # positions in the index, and the (H, W) that they are fitted into


class TrainingBatches(Dataset[Batch | UserError]):
    """Makes the training batches that it is asked for."""

    def __init__(
        self, index: Index, images: Images, config: TrainConfig, plan: EpochPlan, transform: Transform | None = None
    ) -> None:
        self.index, self.images, self.config, self.plan, self.transform = index, images, config, plan, transform
        self.buckets = training_buckets(index, config)
        self._order: tuple[tuple[int, tuple[int, ...]], EpochOrder] | None = None

    def __getitem__(self, request: BatchRequest) -> Batch | UserError:
        """The batch. An error is returned as a value: torch's loader would wrap one that is raised in a traceback."""
        height, width = self._epoch_order(request).shapes[request.positions[0] // self.config.batch].tolist()
        images = channels.empty(len(request.positions), (height, width), self.index.pixels)
        try:
            samples = [self._sample(request, *each) for each in zip(request.positions, images, strict=True)]
        except UserError as error:
            return error
        return collate(samples, self.buckets, images)

    def _sample(self, request: BatchRequest, position: int, image: np.ndarray) -> Sample:
        """The sample at a position of the epoch, its image written into `image` (H, W, channels)."""
        order, config = self._epoch_order(request), self.config.augment
        position %= len(order.images)
        index, repeat = int(order.images[position]), int(order.repeats[position])
        random, shape = sample_random(self.config.seed, request.epoch, index, repeat), image.shape[:2]
        sample = self._placed(index, position, shape, request, random)
        if request.mosaic and random.random() < config.mixup:
            (partner,) = self._partners(1, position, request, random)
            sample = augment.mixup(sample, self._placed(partner, position, shape, request, random), random)
        if self.transform is not None:
            sample = self.transform(sample, random, len(self.index.names), self.index.paths[index])
        colours = augment.draw_colours(config, random)
        sample = augment.flip(line.rotate90(sample, config, random), config, random, image)
        if colours is not None:
            augment.adjust_colours(image, colours, self.index.pixels)
        line.expose(image, config, random)
        return sample

    def _placed(
        self, index: int, position: int, shape: tuple[int, int], request: BatchRequest, random: np.random.Generator
    ) -> Sample:
        """Image `index`, in a mosaic or alone, moved onto an output of `shape` (H, W)."""
        imgsz, config = self.config.imgsz, self.config.augment
        sample = self._pasted(index, position, request, random)
        if request.mosaic and random.random() < config.mosaic:
            partners = self._partners(3, position, request, random)
            height, width = shape_of(imgsz)
            canvas = 2 * height, 2 * width
            others = [self._pasted(partner, position, request, random) for partner in partners]
            placed = augment.mosaic([sample, *others], imgsz, random)
        else:
            canvas = sample.image.shape[0], sample.image.shape[1]
            placed = [augment.Placed(sample, 0, 0)]
        matrix, zoom = augment.draw_affine(*canvas, shape, config, random)
        return augment.place(placed, canvas, matrix, zoom, shape)

    def _pasted(self, index: int, position: int, request: BatchRequest, random: np.random.Generator) -> Sample:
        """Image `index`, with defects of another one where `copy_paste` says so."""
        probability = self.config.augment.copy_paste if request.mosaic else 0
        sample = self._load(index)
        if not probability or random.random() >= probability:
            return sample
        partners = self._partners(PASTE_TRIES, position, request, random)  # most images of a line have no defect
        partner = next((each for each in partners if self.index.offsets[each] < self.index.offsets[each + 1]), None)
        return sample if partner is None else line.copy_paste(sample, self._load(partner), random)

    def _partners(self, count: int, position: int, request: BatchRequest, random: np.random.Generator) -> list[int]:
        """Images drawn from the window of the epoch that `position` lies in."""
        batch, order = self.config.batch, self._epoch_order(request).images
        numbers, part = window(position // batch, self.plan.num_batches, batch), part_of(position, batch)
        drawn = random.integers(0, len(numbers) * len(part), count).tolist()
        positions = (numbers[draw // len(part)] * batch + part[draw % len(part)] for draw in drawn)
        return [int(order[each % len(order)]) for each in positions]

    def _load(self, index: int) -> Sample:
        """An image that just fits into imgsz and its boxes, without those to be ignored."""
        image = self.images[index]
        boxes, labels, ignore = self.index.annotations(index)
        height, width = self.index.sizes[index].tolist()
        boxes *= np.array([image.shape[1] / width, image.shape[0] / height] * 2, np.float32)
        return Sample(image, boxes[~ignore], labels[~ignore], ignore[~ignore], index, source_ids=(index,))

    def _epoch_order(self, request: BatchRequest) -> EpochOrder:
        wanted = request.epoch, request.left_out
        if self._order is None or self._order[0] != wanted:
            self._order = (wanted, self.plan.order(*wanted))
        return self._order[1]


class ValidationBatches(Dataset[Batch | UserError]):
    """Makes the validation batches that it is asked for."""

    def __init__(self, index: Index, imgsz: ImageSize) -> None:
        self.index, self.imgsz = index, imgsz
        self.tiles = TileImages(index, imgsz, RecentFullImages(index.whole, 0)) if index.tiling else None
        counts = np.diff(index.offsets)
        self.buckets = padding_buckets(float(counts.mean()), int(counts.max()))

    def __getitem__(self, request: ValRequest) -> Batch | UserError:
        """The batch, or the error as a value."""
        image_ids, shape = request
        try:
            return collate([self._sample(image_id, shape) for image_id in image_ids], self.buckets)
        except UserError as error:
            return error

    def _sample(self, image_id: int, shape: tuple[int, int]) -> Sample:
        height, width = self.index.sizes[image_id].tolist()
        image = load_resized(self.index, image_id, self.imgsz) if self.tiles is None else self.tiles[image_id]
        image, transform = augment.letterbox(image, shape, False, (height, width))
        boxes, labels, ignore = self.index.annotations(image_id)
        boxes *= np.array([transform.scale_x, transform.scale_y] * 2, np.float32)
        boxes += np.array([transform.pad_left, transform.pad_top] * 2, np.float32)
        return Sample(image, boxes, labels, ignore, image_id, transform)


def collate(samples: Sequence[Sample], buckets: Sequence[int], images: np.ndarray | None = None) -> Batch:
    """Samples of one size as a Batch; boxes are padded to the smallest of the ascending `buckets` that is enough.

    If a transform has added so many boxes that the largest is too small, it is doubled. `images` (B, H, W, channels)
    holds the samples' images if they are in one array already.
    """
    most = max(len(sample.labels) for sample in samples)
    larger = (buckets[-1] * 2**doubled for doubled in itertools.count(1))
    slots = next(size for size in itertools.chain(buckets, larger) if size >= most)
    if images is None:
        images = np.stack([sample.image for sample in samples])
    shape = len(samples), slots
    boxes, labels, ignore = np.zeros((*shape, 4), np.float32), np.full(shape, -1, np.int64), np.zeros(shape, bool)
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


def training_buckets(index: Index, config: TrainConfig) -> tuple[int, ...]:
    """Numbers of boxes that the images of a training batch are padded to, ascending."""
    counts = np.diff(index.offsets)
    most = int(counts.max()) + (line.MOST_PASTED if config.augment.copy_paste else 0)
    most *= (4 if config.augment.mosaic else 1) * (2 if config.augment.mixup else 1)
    return padding_buckets(4 * float(counts.mean()), most)


def padding_buckets(typical: float, largest: int) -> tuple[int, ...]:
    """At most 4 numbers of boxes to pad to, in equal ratios from a typical count to the largest, multiples of 8."""
    last = 8 * math.ceil(max(largest, 1) / 8)
    first = min(8 * math.ceil(max(typical, 1) / 8), last)
    middle = (8 * math.ceil(first * (last / first) ** (step / 3) / 8) for step in (1, 2))
    return tuple(sorted({first, *middle, last}))
