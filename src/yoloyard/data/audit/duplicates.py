"""Images of one split that are duplicates of images of another: encoded again, resized, mirrored, or the same bytes.

Thumbnails propose pairs, the two files decide: another shot of the same scene is not a duplicate.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from yoloyard.common.cores import map_in_threads, usable_cores
from yoloyard.common.errors import UserError
from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.data.audit.problems import Problem
from yoloyard.data.index.image_facts import ImageFacts, examine
from yoloyard.data.index.index import Index
from yoloyard.data.pixels.decode import COLOUR_CHANNELS, decode_image, encode_jpeg
from yoloyard.data.pixels.lights import files_of
from yoloyard.data.pixels.view import viewed
from yoloyard.data.store import Store

log = logging.getLogger(__name__)

RESULTS = Store("images", ".json", version=3, kept=100)  # the version also stands for what counts as a duplicate
TOLD_FROM_PAIRS = 10_000_000  # so many pairs take long enough for a line

THUMBNAIL_COMPONENTS = 64  # in which nearest ones are looked for
SEARCH_GROUPS = 32  # the nearest image of each group is a candidate
IMAGE_CANDIDATES = 3  # pairs that are decoded for an image
DISTANCES_AT_ONCE = 500_000
MAX_THUMBNAIL_DISTANCE = 10.0  # grey levels, root of the mean square; resizing without smoothing costs most of it

# Measured, see docs/data-check.md: duplicates reach 0.9 and 1.3, other shots of the same scene begin at 2.3 and 2.4.
MAX_ERROR, MAX_BLOCK_ERROR = 1.0, 1.6
# Duplicates in another size are above 0.65 and 0.6, other images below 0.2.
MIN_LIKENESS, MIN_BLOCK_LIKENESS = 0.6, 0.5
COMPARED_SIDE_PIXELS = 1024  # larger images are compared at this size
BLOCK_PIXELS = 16

# Eight orientations of a square: mirrored first (or not), then quarter turns.
ORIENTATIONS = {(False, 0): "", (True, 0): "mirrored", (False, 2): "turned by 180 degrees", (True, 2): "upside down"}
ORIENTATIONS |= {(False, quarters): "turned by 90 degrees" for quarters in (1, 3)}
ORIENTATIONS |= {(True, quarters): "mirrored and turned by 90 degrees" for quarters in (1, 3)}

# The luminance table of ITU-T T.81, annex K.1, sums up to this; encoders scale it by their quality.
_STANDARD_TABLE = 3688


@dataclass(frozen=True)
class Duplicate:
    """Image `second` of the second split is `first` of the first; positions in their lists."""

    first: int
    second: int
    how: str  # "the same bytes", or "the same image (mirrored, resized)"


Files = Sequence[tuple[Path, ImageFacts]]  # of one image, a light each; most images have one


def find_duplicates(
    first: Sequence[Path], second: Sequence[Path], state: str | None = None, files: Sequence[str] = ()
) -> list[Duplicate]:
    """The images of `second` that are duplicates of one of `first`, each once, in the order of `second`.

    Of images of several `files` (as in PixelSpec) all must be duplicates. Crops are not found. Two shots of a scene in
    which nothing has changed, saved in different qualities or sizes, can't be told from a duplicate. If the result is
    kept under `state` (see `state_of`), no image is looked at.
    """
    if (known := known_duplicates(state)) is not None:
        return known
    here, there = (_examine(paths, files) for paths in (first, second))
    images = ((str(path), facts.digest.hex()) for image in (*here, *there) for path, facts in image)
    kept, to_write = RESULTS.path((len(first), *images)), [] if state is None else [RESULTS.path([state])]
    found = _kept(kept)
    if found is None:
        found = _compare(here, there)
        to_write.append(kept)
    text = json.dumps([astuple(each) for each in found])
    for each in to_write:
        RESULTS.write(each, lambda temporary: temporary.write_text(text))
    return found


def _examine(paths: Sequence[Path], files: Sequence[str]) -> list[Files]:
    """All files of each image, with their facts."""
    images = [files_of(path, files) for path in paths]
    facts = iter(examine([file for image in images for file in image]))
    return [[(file, next(facts)) for file in image] for image in images]


def _compare(here: Sequence[Files], there: Sequence[Files]) -> list[Duplicate]:
    usable = [position for position, image in enumerate(here) if not _has_problem(image)]
    by_digest = {_digest(here[position]): position for position in reversed(usable)}
    duplicates, others = [], []
    for position, image in enumerate(there):
        if _has_problem(image):
            continue
        if (same := by_digest.get(_digest(image))) is not None:
            duplicates.append(Duplicate(same, position, "the same bytes"))
        else:
            others.append(position)
    if usable and others:
        if len(usable) * len(others) >= TOLD_FROM_PAIRS:
            log.info(f"comparing {len(others):,} images with {len(usable):,} others, to find duplicates")
        proposed = _nearest(
            np.stack([_thumbnail(here[position]) for position in usable]),
            np.stack([_thumbnail(there[position]) for position in others]),
        )

        def decide(row: int) -> Duplicate | None:
            for candidate, orientation in proposed[row]:
                one, other = here[usable[candidate]], there[others[row]]
                ways = [_same_image(*pair, orientation) for pair in zip(one, other, strict=True)]
                if all(ways):
                    return Duplicate(usable[candidate], others[row], ways[0])
            return None

        duplicates += filter(None, map_in_threads(decide, range(len(others)), usable_cores(), at_once=1))
    return sorted(duplicates, key=lambda each: each.second)


def _has_problem(image: Files) -> bool:
    return any(facts.problem for _, facts in image)


def _digest(image: Files) -> bytes:
    return b"".join(facts.digest for _, facts in image)


def _thumbnail(image: Files) -> np.ndarray:
    """The mean of the thumbnails of all files, uint8 (32, 32)."""
    return np.mean([facts.thumbnail for _, facts in image], axis=0).astype(np.uint8)


def known_duplicates(state: str | None) -> list[Duplicate] | None:
    """What `find_duplicates` has kept under this `state`; None if it would have to search."""
    return None if state is None else _kept(RESULTS.path([state]))


def _kept(file: Path) -> list[Duplicate] | None:
    return RESULTS.find(file, lambda path: [Duplicate(*row) for row in json.loads(path.read_text(encoding="utf-8"))])


def state_of(first: Index, second: Index) -> str | None:
    """The `state` of `find_duplicates` for the images of two splits; None where their indexes are not kept."""
    if first.file is None or second.file is None:
        return None
    return f"{first.file.name} {second.file.name}"  # which follow from all paths, lengths and times


def duplicate_problem(duplicate: Duplicate, first: Sequence[Path], second: Sequence[Path], first_name: str) -> Problem:
    """What is said of a duplicate; `first` are the images of the split `first_name`, `second` those of the other."""
    one, other = first[duplicate.first], second[duplicate.second]
    what = f"the same file is in {first_name}" if one == other else f"{duplicate.how} as {one} of {first_name}"
    return Problem("duplicate across splits", str(other), what)


def turned(image: np.ndarray, orientation: tuple[bool, int]) -> np.ndarray:
    """`image` (H, W, ...) in one of ORIENTATIONS."""
    mirrored, quarters = orientation
    return np.rot90(image[:, ::-1] if mirrored else image, quarters)


def _nearest(first: np.ndarray, second: np.ndarray) -> list[list[tuple[int, tuple[bool, int]]]]:
    """For each thumbnail of `second` (n, 32, 32) the rows of `first` (N, 32, 32) that may be the same, best first."""
    # Principal components of the first ones: what a fixed camera shows in all images counts for nothing.
    coarse = _coarse(first)
    mean = coarse.mean(axis=0)
    sample = coarse[:: max(1, len(coarse) // 5000)] - mean
    axes = np.linalg.eigh(sample.T @ sample)[1][:, -THUMBNAIL_COMPONENTS:].astype(np.float32)
    points = (coarse - mean) @ axes
    # |v - p|^2 without |v|^2, as one product; a piece of it at a time, which stays in the processor's cache.
    matrix = np.concatenate((-2 * points, (points**2).sum(axis=1, keepdims=True)), axis=1)
    groups = np.array_split(np.arange(len(points)), min(SEARCH_GROUPS, len(points)))

    found: list[list[tuple[float, int, tuple[bool, int]]]] = [[] for _ in range(len(second))]
    for orientation in ORIENTATIONS:
        oriented = np.moveaxis(turned(np.moveaxis(second, 0, -1), orientation), -1, 0)
        places = (_coarse(oriented) - mean) @ axes
        # Means and components only bring images nearer, so what is too far away here need not be looked at.
        limits = 1.001 * MAX_THUMBNAIL_DISTANCE**2 * coarse.shape[1] - (places**2).sum(axis=1)
        places = np.concatenate((places, np.ones((len(places), 1), np.float32)), axis=1)
        for group in groups:
            of_group = matrix[group[0] : group[-1] + 1].T
            rows_at_once = max(1, DISTANCES_AT_ONCE // len(group))
            for start in range(0, len(second), rows_at_once):
                distances = places[start : start + rows_at_once] @ of_group
                best = distances.argmin(axis=1)
                near = distances[np.arange(len(best)), best] <= limits[start : start + rows_at_once]
                rows, best = start + np.flatnonzero(near), group[0] + best[near]
                levels = np.sqrt(((oriented[rows].astype(np.float32) - first[best]) ** 2).mean(axis=(1, 2)))
                for row, candidate, level in zip(rows, best, levels, strict=True):
                    if level <= MAX_THUMBNAIL_DISTANCE:
                        found[row].append((float(level), int(candidate), orientation))
    return [[(row, orientation) for _, row, orientation in sorted(each)[:IMAGE_CANDIDATES]] for each in found]


def _coarse(thumbnails: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels as float32 (N, 256)."""
    count, side = len(thumbnails), thumbnails.shape[1] // 2
    return thumbnails.reshape(count, side, 2, side, 2).mean(axis=(2, 4), dtype=np.float32).reshape(count, -1)


def _same_image(first: tuple[Path, ImageFacts], second: tuple[Path, ImageFacts], orientation: tuple[bool, int]) -> str:
    """How `second`, turned to `orientation`, is the same image as `first`; empty if it isn't."""
    try:
        one, other = _rgb(*first), np.ascontiguousarray(turned(_rgb(*second), orientation))
        qualities = _quality(first[0]), _quality(second[0])
    except (UserError, OSError):
        return ""  # changed or removed since it was examined: nothing can be said
    changes = list(filter(None, (ORIENTATIONS[orientation], "resized" if one.shape != other.shape else "")))
    same = _like(_grey(one), _grey(other)) if changes else _is_encoding(one, qualities[0], other, qualities[1])
    return f"the same image ({', '.join(changes or ['encoded again'])})" if same else ""


def _rgb(path: Path, facts: ImageFacts) -> np.ndarray:
    """The image as uint8 RGB, of other than 1, 3 or 4 channels what can be seen of it."""
    if facts.channels in COLOUR_CHANNELS:
        return decode_image(path)
    return viewed(decode_image(path, pixels=PixelSpec(channels=facts.channels)))


def _is_encoding(one: np.ndarray, quality: int, other: np.ndarray, other_quality: int) -> bool:
    """Whether one of two RGB images of the same size comes from encoding the other."""
    # The better one is encoded as the worse one was. What then differs is small against the loss of the encoding itself
    # if it is a duplicate. Between two shots it is their noise, which the encoding rounds to other steps.
    better, worse = (one, other) if quality >= other_quality else (other, one)
    again, lowest = _grey(better), min(quality, other_quality)
    if lowest < 100:
        data = np.frombuffer(encode_jpeg(better, lowest), np.uint8)
        again = np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.float32)
    left = _block_means((again - _grey(worse)) ** 2)
    loss = _block_means((again - _grey(better)) ** 2)
    return bool(
        np.sqrt(left.mean()) <= MAX_ERROR * (np.sqrt(loss.mean()) + 0.5)
        and (np.sqrt(left) <= MAX_BLOCK_ERROR * (np.sqrt(loss) + 2)).all()
    )


def _like(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two grey images, float32, have the same fine structure where they have most of it."""
    height, width = (min(sides) for sides in zip(one.shape, other.shape, strict=True))
    scale = min(1.0, COMPARED_SIDE_PIXELS / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    a, b = (cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (one, other))
    a, b = (cv2.GaussianBlur(image, (0, 0), 1.0) - cv2.GaussianBlur(image, (0, 0), 3.0) for image in (a, b))
    covariance = _block_means(a * b)
    variances = _block_means(a * a), _block_means(b * b)
    less, more = np.minimum(*variances), np.maximum(*variances)  # a duplicate may have lost details
    strong = np.argsort(-more)[: max(4, len(more) // 4)]
    if more[strong].min() < 0.25:  # half a grey level: nothing to be seen in it
        return False
    likeness = covariance.sum() / max(less.sum(), 1e-6)
    in_blocks = covariance[strong] / np.maximum(less[strong], 0.1)
    return bool(likeness >= MIN_LIKENESS and np.quantile(in_blocks, 0.1) >= MIN_BLOCK_LIKENESS)


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _block_means(values: np.ndarray) -> np.ndarray:
    """Means of values (H, W) over square blocks, smaller ones in small images; flat."""
    height, width = values.shape
    block = min(BLOCK_PIXELS if min(height, width) >= 8 * BLOCK_PIXELS else BLOCK_PIXELS // 2, height, width)
    rows, columns = height // block, width // block
    whole = values[: rows * block, : columns * block].reshape(rows, block, columns, block)
    return whole.mean(axis=(1, 3), dtype=np.float64).ravel()


def _quality(path: Path) -> int:
    """The quality 1..100 that a JPEG was saved with, by its first table of quantization; 100 for other files."""
    try:
        with JpegImageFile(path) as image:
            share = sum(next(iter(image.quantization.values()))) * 100 / _STANDARD_TABLE
    except (SyntaxError, StopIteration):  # another format, or no table
        return 100
    return min(max(round((200 - share) / 2 if share <= 100 else 5000 / share), 1), 99)
