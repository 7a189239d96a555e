"""In what order training visits the images, and from where a mosaic takes its other three.

An epoch is a permutation of the images, repeats included (see `epoch_plan.py`). A position in it means the
same image for any number of workers or ranks.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from yoloyard.common.image_size import ImageSize, shape_of

# Workers take batches in turn. Partners come from batches that are a multiple of this apart, so that each of 1, 2, 4 or
# 8 workers uses only images that it has decoded itself.
WINDOW_STRIDE = 8
WINDOW_IMAGES = 64  # about so many images to choose partners from, and at least two batches
# Ranks take contiguous shares of each batch. Partners come from one part of their batches, so that each of 2, 4 or 8
# ranks uses its own images, if that leaves enough to choose from.
PART_IMAGES = 16
IMAGES_OF_A_BATCH = 4  # at least, that its tiles are of
KEPT_BYTES = 2 * 2**30  # of decoded images, over all workers of a process that trains


@dataclass(frozen=True)
class BatchRequest:
    """Everything that a training batch depends on; the sampler sends it to a worker."""

    epoch: int
    positions: range  # in the epoch's permutation; beyond its end it starts again
    mosaic: bool
    left_out: tuple[int, ...] = ()  # images in whose places others come


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The permutation int64 (count,) of an epoch."""
    return np.random.default_rng([seed, epoch, 0]).permutation(count)


def sample_random(seed: int, epoch: int, index: int, repeat: int = 0) -> np.random.Generator:
    """The generator that all of one sample's randomness comes from; each repeat of an image in an epoch has its own."""
    return np.random.default_rng([seed, epoch, 1, index, repeat] if repeat else [seed, epoch, 1, index])


def window(number: int, num_batches: int, batch: int) -> range:
    """The batches, `number` among them, whose images may be mosaic partners in batch `number` of an epoch.

    The epoch is cut into equal stretches; a window is every eighth batch (fewer in a short epoch) of a stretch.
    """
    stretches, stride = _num_stretches(num_batches, batch), WINDOW_STRIDE
    stretch = number * stretches // num_batches
    first, end = (-(-each * num_batches // stretches) for each in (stretch, stretch + 1))
    while stride > 1 and (end - first) // stride < max(2, (_window_depth(batch) + 1) // 2):
        stride //= 2
    return range(first + (number - first) % stride, end, stride)


def part_of(position: int, batch: int) -> range:
    """The part of a batch (an eighth to all) whose images may be mosaic partners of the one at `position`."""
    size = batch // _num_parts(batch)
    first = position % batch // size * size
    return range(first, first + size)


def images_in_use(num_batches: int, batch: int, workers: int, world_size: int = 1) -> int:
    """How many images a worker keeps so that none of its windows is decoded twice."""
    stretch = math.ceil(num_batches / _num_stretches(num_batches, batch))
    part = batch // math.gcd(world_size, _num_parts(batch))
    return math.ceil(stretch / math.gcd(max(1, workers), WINDOW_STRIDE)) * part


def num_lanes(batch: int, kept: int) -> tuple[int, int]:
    """How `near_order` deals an epoch to lanes: so many batches in turn, and so many parts of each batch.

    Where these are multiples of the numbers of workers and of ranks, no two of them take tiles of the same image.
    """
    parts = _num_parts(batch)
    most = 2 * max(parts, IMAGES_OF_A_BATCH)
    return next(each for each in (WINDOW_STRIDE, 4, 2, 1) if each == 1 or each * most <= kept), parts


def near_order(sources: np.ndarray, batch: int, kept: int, random: np.random.Generator) -> np.ndarray:
    """A permutation int64 (L,) in which parts of the same image come near one another; `sources` (L,) are their images.

    Workers and ranks take every eighth batch, or fewer, and parts of batches, as mosaics do. Each such lane of places
    has images of its own: it goes through them a few at a time, whose parts are shuffled, so that each image is decoded
    about once. How many at a time follows from how many images may be `kept` in memory by all workers together: half of
    them are in use. A batch has parts of at least IMAGES_OF_A_BATCH images, also where that is too much.
    """
    places, (stride, parts) = np.arange(len(sources)), num_lanes(batch, kept)
    at_once = max(kept // 2 // (stride * parts), -(-IMAGES_OF_A_BATCH // parts))
    lanes = places // batch % stride * parts + places % batch // (batch // parts)
    by_lane = np.argsort(lanes, kind="stable")
    _, images = np.unique(random.permutation(sources.max() + 1)[sources], return_inverse=True)  # in random order
    by_image = np.argsort(images, kind="stable")
    order = np.empty_like(places)
    order[by_lane] = by_image[np.lexsort((random.random(len(places)), images[by_image] // at_once, lanes[by_lane]))]
    return order


def tile_batches(sources: np.ndarray, batch: int, workers: int, rank: int, world_size: int) -> list[list[int]]:
    """A rank's batches of at most `batch` tiles, which are parts of the images `sources` (N,), ascending.

    An image's tiles are of one rank and, as far as batches go round evenly, of one worker. Neither ranks nor workers
    change which tiles are together in a batch.
    """
    groups: list[range] = []  # of the tiles of one image, or of several with few tiles
    for start, end in itertools.pairwise([0, *(np.flatnonzero(np.diff(sources)) + 1).tolist(), len(sources)]):
        if groups and end - groups[-1].start <= batch:
            groups[-1] = range(groups[-1].start, end)
        else:
            groups.append(range(start, end))
    queues: list[list[list[int]]] = [[] for _ in range(max(1, workers))]
    for group in groups[rank::world_size]:
        shortest = min(queues, key=len)
        shortest += (list(group[first : first + batch]) for first in range(0, len(group), batch))
    return [tiles for row in itertools.zip_longest(*queues) for tiles in row if tiles is not None]


def batch_requests(
    count: int, batch: int, rank: int, world_size: int, epoch: int, position: int, mosaic: bool
) -> list[BatchRequest]:
    """A rank's batches of an epoch of `count` positions, from `position` on; it takes a contiguous share of each batch.

    The last batch is filled from the permutation's start.
    """
    share = batch // world_size
    firsts = (start + rank * share for start in range(position, count, batch))
    return [BatchRequest(epoch, range(first, first + share), mosaic) for first in firsts]


def rectangular_batches(
    sizes: np.ndarray, imgsz: ImageSize, batch: int, stride: int = 32
) -> list[tuple[list[int], tuple[int, int]]]:
    """Images of sizes int (N, 2) height, width in batches of similar shape: (image ids, (H, W) of the batch).

    Sorted by height / width; a batch is as high and wide as the highest and widest of its images that are fitted into
    `imgsz`, half a stride to spare, both rounded up to the stride, as YOLOv5 and its successors validate.
    """
    ratios = sizes[:, 0] / sizes[:, 1]
    order = np.argsort(ratios, kind="stable")
    return [
        (members.tolist(), rectangular_shape(ratios[members[0]], ratios[members[-1]], imgsz, stride))
        for members in np.split(order, range(batch, len(order), batch))
    ]


def rectangular_shape(lowest: float, highest: float, imgsz: ImageSize, stride: int) -> tuple[int, int]:
    """The (H, W) of a batch whose images have ratios height / width from `lowest` to `highest`."""
    most_height, most_width = shape_of(imgsz)
    shape = min(highest * most_width, most_height), min(1 / lowest * most_height, most_width)
    height, width = (math.ceil(side / stride + 0.5) * stride for side in shape)
    return height, width


def _num_parts(batch: int) -> int:
    return next(parts for parts in (8, 4, 2, 1) if parts == 1 or (batch % parts == 0 and batch // parts >= PART_IMAGES))


def _window_depth(batch: int) -> int:
    return max(2, round(WINDOW_IMAGES / batch))


def _num_stretches(num_batches: int, batch: int) -> int:
    return max(1, num_batches // (WINDOW_STRIDE * _window_depth(batch)))
