"""Which images an epoch holds, how often, in which order, and in which shape each batch comes.

Shapes: N images of the data set, L positions of an epoch (the same in every epoch), C classes.
"""

import math
from dataclasses import dataclass

import numpy as np

from yoloyard.common.image_size import ImageSize, shape_of
from yoloyard.config.settings import TrainConfig
from yoloyard.data.index.index import Index
from yoloyard.data.loading.sampling import KEPT_BYTES, epoch_order, near_order, rectangular_shape


@dataclass(frozen=True)
class EpochOrder:
    """What comes at each position of one epoch."""

    images: np.ndarray  # int64 (L,) positions in the index
    repeats: np.ndarray  # int64 (L,): 0 the first time that an image comes in this epoch, then 1, ...
    shapes: np.ndarray  # int64 (batches, 2) height, width of each batch


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """What decides the order of each epoch."""

    factors: np.ndarray  # float64 (N,): how often each image comes on average; at least 1, but for clean tiles
    batch: int  # images of all ranks
    imgsz: ImageSize
    seed: int
    sizes: np.ndarray | None = None  # int (N, 2) height, width; given where batches are rectangular
    stride: int = 32
    sources: np.ndarray | None = None  # int64 (N,): of tiles, the images that they are parts of
    kept: int = 0  # how many of these may be in memory at a time

    def __len__(self) -> int:
        """Positions of an epoch; the last batch is filled from its start."""
        return round(float(self.factors.sum()))

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self) / self.batch)

    def order(self, epoch: int, left_out: tuple[int, ...] = ()) -> EpochOrder:
        """What comes in `epoch`, drawn from the seed and the epoch alone; others in the places of images `left_out`."""
        counts = _draw_counts(self.factors, len(self), np.random.default_rng([self.seed, epoch, 3]))
        images = np.repeat(np.arange(len(counts)), counts)
        repeats = np.arange(len(images)) - np.repeat(np.cumsum(counts) - counts, counts)
        shapes = np.tile(shape_of(self.imgsz), (self.num_batches, 1))
        if self.sizes is not None:
            order, shapes = self._rectangular(self.sizes[images], epoch)
        elif self.sources is not None:
            random = np.random.default_rng([self.seed, epoch, 0])
            order = near_order(self.sources[images], self.batch, self.kept, random)
        else:
            order = epoch_order(self.seed, epoch, len(self))
        images, repeats = images[order], repeats[order]
        if left_out:
            images, repeats = self._without(left_out, images, repeats, epoch)
        return EpochOrder(images, repeats, shapes)

    def _without(
        self, left_out: tuple[int, ...], images: np.ndarray, repeats: np.ndarray, epoch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`images` and `repeats` (L,) with another image at each place of one that is left out; all else stays."""
        allowed = np.setdiff1d(np.arange(len(self.factors)), left_out)
        random, images, repeats = np.random.default_rng([self.seed, epoch, 4]), images.copy(), repeats.copy()
        for place in np.flatnonzero(np.isin(images, left_out)):
            images[place] = image = random.choice(allowed)
            repeats[place] = np.count_nonzero(images == image) - 1  # a sample of its own
        return images, repeats

    def _rectangular(self, sizes: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order (L,) and shapes (batches, 2) of shuffled batches, each of similar ratios; a partial batch is last.

        A shape depends on all images of its batch, not on a rank's share of them.
        """
        ratios = sizes[:, 0] / sizes[:, 1]
        by_ratio = np.argsort(ratios, kind="stable")
        full = len(ratios) // self.batch
        batches = by_ratio[: full * self.batch].reshape(full, self.batch)
        shuffled = batches[epoch_order(self.seed, epoch, full)]
        order = np.concatenate((shuffled.ravel(), by_ratio[full * self.batch :]))
        members = ratios[np.resize(order, self.num_batches * self.batch)].reshape(-1, self.batch)
        bounds = zip(members.min(axis=1), members.max(axis=1), strict=True)
        return order, np.array([rectangular_shape(low, high, self.imgsz, self.stride) for low, high in bounds])


def plan_epochs(index: Index, config: TrainConfig, stride: int = 32) -> EpochPlan:
    """The plan that the settings `repeat_factor`, `tile_positive` and `rect` ask for; else every image comes once."""
    factors = repeat_factors(index, config.repeat_factor) if config.repeat_factor else np.ones(len(index))
    if config.tile_positive is not None:
        factors = with_share(factors, has_boxes(index), config.tile_positive)
    sizes = np.array(index.sizes) if config.rect else None
    sources, kept = None, 0
    if index.tiling is not None:
        sources, kept = index.tiling.sources, KEPT_BYTES // index.whole.mean_bytes()
    return EpochPlan(factors, config.batch, config.imgsz, config.seed, sizes, stride, sources, kept)


def has_boxes(index: Index) -> np.ndarray:
    """Which images have a box that is trained, bool (N,)."""
    trained = np.repeat(np.arange(len(index)), np.diff(index.offsets))[~np.array(index.ignore)]
    return np.bincount(trained, minlength=len(index)) > 0


def with_share(factors: np.ndarray, positive: np.ndarray, share: float) -> np.ndarray:
    """`factors` (N,) of the `positive` images (N,) as they are, and of the others so that the first are this `share`.

    An epoch has all positive images and as many others as that asks for, drawn again in each: some of them, or each
    several times. Where all are positive, or none is, all factors stay.
    """
    if positive.all() or not positive.any():
        return factors
    others = factors[positive].sum() * (1 - share) / share
    return np.where(positive, factors, others / np.count_nonzero(~positive))


def repeat_factors(index: Index, threshold: float) -> np.ndarray:
    """How often each image should come in an epoch, float64 (N,): more than once where it has a rare class.

    A class that is in the share f of the images asks for max(1, sqrt(threshold / f)); of an image's classes the
    rarest decides. Source: Gupta et al., "LVIS" (CVPR 2019), repeat factor sampling.
    """
    trained = ~np.array(index.ignore)
    image_of_box = np.repeat(np.arange(len(index)), np.diff(index.offsets))[trained]
    labels = np.array(index.labels)[trained]
    pairs = np.unique(np.stack((image_of_box, labels), axis=1), axis=0)  # a class counts once an image
    shares = np.bincount(pairs[:, 1], minlength=len(index.names)) / len(index)  # (C,)
    of_class = np.sqrt(threshold / np.maximum(shares, 1 / len(index)))
    factors = np.ones(len(index))
    np.maximum.at(factors, pairs[:, 0], of_class[pairs[:, 1]])
    return factors


def _draw_counts(factors: np.ndarray, total: int, random: np.random.Generator) -> np.ndarray:
    """How often each image comes, int64 (N,), `total` together: the factor rounded down or up, on average the factor.

    Systematic sampling: the fractions, in shuffled order, are intervals one after the other on a line; after a random
    start every whole number selects the interval that it is in. They are stretched a little, since `total` is rounded.
    """
    counts = np.floor(factors).astype(np.int64)
    shuffled = random.permutation(np.flatnonzero(factors > counts))
    if not len(shuffled):
        return counts
    start, extra = random.random(), total - int(counts.sum())
    fractions = (factors - counts)[shuffled]
    # No fraction may exceed 1: to make them larger, their distances from 1 are made smaller.
    if extra <= fractions.sum():
        fractions *= extra / fractions.sum()
    else:
        fractions = 1 - (1 - fractions) * (len(fractions) - extra) / (1 - fractions).sum()
    ends = np.minimum(np.cumsum(fractions), extra)
    ends[-1] = extra
    counts[shuffled] += np.diff(np.floor(start + ends).astype(np.int64), prepend=0)
    return counts
