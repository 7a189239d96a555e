"""The index of a split: every image's path, size and boxes as flat arrays, kept in a cache and memory-mapped.

Shapes: N images, n boxes of all images, k boxes of one image.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import numpy as np

from yoloyard.common.cores import map_in_threads
from yoloyard.common.errors import UserError
from yoloyard.common.pixel_spec import EIGHT_BITS, PixelSpec
from yoloyard.data.audit.problems import Problem
from yoloyard.data.formats.data_yaml import DataSpec
from yoloyard.data.formats.labels import LabelledImage, Labels
from yoloyard.data.formats.sources import SourceImage, Sources, find_sources
from yoloyard.data.formats.table import label_suffixes
from yoloyard.data.index.read import ReadSplit, read_sources
from yoloyard.data.index.unchanged import NOTES, look, noted, write_note
from yoloyard.data.pixels.decode import IMAGE_SUFFIXES
from yoloyard.data.pixels.lights import files_of
from yoloyard.data.store import Store, alone, map_arrays, stamp, write_arrays

if TYPE_CHECKING:
    from yoloyard.data.index.tiled import Tiling

INDEXES = Store("index", ".safetensors", version=8, kept=50)  # the version also stands for how labels are understood
READING_THREADS = 4  # files on network disks come one round trip each

Item = TypeVar("Item")


class Stored(Sequence[Item]):
    """Texts, or what `make` makes of them, in one array of bytes, which processes share."""

    make: Callable[[str], Item]

    def __init__(self, text: np.ndarray, offsets: np.ndarray) -> None:
        self.text, self.offsets = text, offsets

    @classmethod
    def of(cls, items: Iterable[Item]) -> Self:
        """Store these, file names in any encoding among them."""
        return cls._joined([os.fsencode(str(item)) for item in items])

    @classmethod
    def _joined(cls, encoded: list[bytes]) -> Self:
        return cls(np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, position: int) -> Item: ...

    @overload
    def __getitem__(self, position: slice) -> Sequence[Item]: ...

    def __getitem__(self, position: int | slice) -> Item | Sequence[Item]:
        if isinstance(position, slice):
            return [self[each] for each in range(len(self))[position]]
        position = range(len(self))[position]
        return type(self).make(os.fsdecode(self.text[self.offsets[position] : self.offsets[position + 1]].tobytes()))

    def at(self, positions: np.ndarray) -> Self:
        """Those at these positions."""
        text, ends = self.text.tobytes(), self.offsets.tolist()
        return self._joined([text[ends[each] : ends[each + 1]] for each in positions.tolist()])


class Texts(Stored[str]):
    make = str


class Paths(Stored[Path]):
    make = Path


@dataclass(frozen=True, eq=False)
class Index:
    """Images and boxes of a split. The position of an image is its image id within the program."""

    names: tuple[str, ...]
    paths: Paths
    sizes: np.ndarray  # int32 (N, 2) height, width of the original, EXIF orientation applied
    offsets: np.ndarray  # int64 (N + 1): image i has the boxes offsets[i] to offsets[i + 1]
    boxes: np.ndarray  # float32 (n, 4) xyxy pixels of the original
    labels: np.ndarray  # int64 (n,)
    ignore: np.ndarray  # bool (n,): crowd and difficult, neither trained nor counted against
    problems: tuple[Problem, ...]  # what was left out and why, with file and line
    source_ids: np.ndarray  # int64 (N,) the image's id in the user's COCO JSON, its position otherwise
    category_ids: np.ndarray  # int64 (C,) the class's id in the user's COCO JSON, its number otherwise
    file_names: Texts  # as the COCO JSON says, else the path from the folder of the split's images
    file: Path | None = None  # of the cache, that the arrays are mapped from
    skipped: int = 0  # images that the split names and that can't be used
    pixels: PixelSpec = EIGHT_BITS  # what its images are made of
    tiling: Tiling | None = None  # of an index of tiles: its images are parts of images

    @classmethod
    def of(cls, split: ReadSplit, names: tuple[str, ...]) -> Index:
        """The index of what was read: the images that can be used, with all that is wrong."""
        images = split.images.values()
        boxes: list[LabelledImage | Labels] = [Labels(), *images]  # the first without a box: there may be no image
        return cls(
            names=names,
            paths=Paths.of(split.images),
            sizes=np.array([image.size for image in images], np.int32).reshape(-1, 2),
            offsets=np.cumsum([0, *(len(each.labels) for each in images)], dtype=np.int64),
            boxes=np.concatenate([each.boxes for each in boxes]).astype(np.float32),
            labels=np.concatenate([each.labels for each in boxes]),
            ignore=np.concatenate([each.ignore for each in boxes]),
            problems=tuple(split.problems),
            source_ids=np.array([image.image_id for image in images], np.int64),
            category_ids=np.array(split.category_ids, np.int64),
            file_names=Texts.of(image.name for image in images),
            skipped=split.skipped,
            pixels=split.pixels,
        )

    @property
    def whole(self) -> Index:
        """That of the whole images, of an index of tiles; any other itself."""
        return self if self.tiling is None else self.tiling.whole

    def __len__(self) -> int:
        return len(self.sizes)

    def annotations(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes float32 (k, 4) xyxy in pixels of the original, labels int64 (k,), ignore bool (k,); copies."""
        here = slice(int(self.offsets[position]), int(self.offsets[position + 1]))
        return np.array(self.boxes[here]), np.array(self.labels[here]), np.array(self.ignore[here])

    def fingerprint(self) -> str:
        """SHA-256 of what is trained on: classes, file names below the split's folder, sizes, boxes and labels.

        Not of pixels, and not of where the data set is: a copy on another machine has the same.
        """
        digest = hashlib.sha256(json.dumps(self.names).encode())
        arrays = (self.sizes, self.offsets, self.boxes, self.labels, self.ignore)
        for array in (self.file_names.offsets, self.file_names.text, *arrays):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def names_digest(self) -> str:
        """SHA-256 of the names of the image files, without their folders, in their order."""
        text, ends = self.paths.text.tobytes(), self.paths.offsets.tolist()
        names = (os.path.basename(text[start:end]) for start, end in itertools.pairwise(ends))
        return hashlib.sha256(b"\n".join(names)).hexdigest()

    def facts(self) -> dict[str, str | int]:
        """How much there is, and the fingerprint, by which two runs tell whether they had the same data."""
        return {"images": len(self), "boxes": len(self.labels), "skipped": self.skipped, "sha256": self.fingerprint()}

    def mean_pixels(self) -> int:
        """Pixels of an image, on average; 0 without images."""
        return round(float(np.prod(self.sizes, axis=1, dtype=np.int64).mean())) if len(self) else 0

    def mean_bytes(self) -> int:
        """Bytes of an image of full size in memory, on average; at least 1."""
        return max(self.pixels.image_bytes(self.mean_pixels(), 1), 1)

    def __reduce__(self) -> tuple[object, ...]:
        # A worker that is spawned maps the same files instead of receiving the arrays.
        if self.file is not None:
            return open_index, (self.file,)
        return Index, tuple(vars(self).values())


def load_index(spec: DataSpec, split: str) -> Index:
    """`read_split`, which also raises UserError if no image can be used or not a single box counts."""
    index = read_split(spec, split)
    require_boxes(index, spec, split)
    return index


def read_split(spec: DataSpec, split: str) -> Index:
    """The index of a split, from the cache if nothing has changed: labels' content, images, classes, format.

    Images that are unreadable or whose labels are wrong are left out and named in `problems`. Where the cache can't be
    written, the index is made again each time, with a line. Of several processes that need it at once, one makes it and
    the others wait. Raises UsageError or UserError if there are no images.
    """
    entries = [[str(entry.path), str(entry.labels)] for entry in spec.splits.get(split, ())]
    parts = (*_meaning(spec), str(spec.path), str(spec.root), split, entries)
    suffixes = label_suffixes()  # of the formats that are known
    note, began = NOTES.path([INDEXES.version, sorted(suffixes), *parts]), time.time()
    known = noted(note)
    if known is not None and (index := find_index(INDEXES.folder / known)) is not None:
        return index
    sources = find_sources(spec, split)
    before = look(sources.watched, sources.lists, IMAGE_SUFFIXES | suffixes)
    files = map_in_threads(_read_labels, sources.images, READING_THREADS)
    file = INDEXES.path(_key(spec, sources, files))
    with alone(file) as is_alone:
        index = find_index(file)
        if index is None:
            index = save_index(Index.of(read_sources(spec, split, sources, files), spec.names), file, is_alone)
    if index.file is not None:
        write_note(note, file.name, before, began)
    return index


def require_images(index: Index, spec: DataSpec, split: str) -> None:
    """Raise UserError if not an image of `split` can be used."""
    if not len(index):
        first = next((problem for problem in index.problems if problem.is_error), "there are none")
        raise UserError(f"{spec.path}: none of the {index.skipped} images of {split!r} can be used; first: {first}")


def require_boxes(index: Index, spec: DataSpec, split: str) -> None:
    """Raise UserError if there is nothing in `split` that can be learned from."""
    require_images(index, spec, split)
    if not len(index.boxes):
        sources = find_sources(spec, split)
        place = sources.split_files[0].path if sources.split_files else sources.images[0].labels
        where = f"the labels of {index.paths[0]} were looked for in {place}"
        first = next((f"; first error: {problem}" for problem in index.problems if problem.is_error), "")
        raise UserError(f"{spec.path}: the {len(index)} images of {split!r} have not a single label; {where}{first}")
    if index.ignore.all():
        raise UserError(
            f"{spec.path}: all {len(index.boxes)} boxes of {split!r} are to be ignored (iscrowd of COCO, difficult of "
            "Pascal VOC), so there is nothing to train on or to count; correct the labels"
        )


def _read_labels(image: SourceImage) -> bytes | Problem | None:
    """The content of the label file, None if there is none, a problem if it can't be read."""
    try:
        with open(image.labels, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read()
        what = "the labels are no regular file, but a pipe or a device"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        what = f"cannot read the labels ({error.strerror or error})"
    return Problem("label unreadable", str(image.labels), what, "image skipped")


def _meaning(spec: DataSpec) -> tuple[object, ...]:
    """What a data.yaml says of labels and pixels."""
    return spec.names, spec.keypoint_values, spec.pixels.as_dict(), spec.bits


def _key(spec: DataSpec, sources: Sources, files: list[bytes | Problem | None]) -> Iterator[object]:
    yield *_meaning(spec), str(sources.folder), [str(problem) for problem in sources.problems]
    for file in sources.split_files:
        yield str(file.path), str(file.folder), hashlib.sha256(file.content).hexdigest()
        for name in file.file_names:
            yield stamps(file.image(name), spec.pixels)
    for image, content in zip(sources.images, files, strict=True):
        stated = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else content and str(content)
        yield str(image.path), stamps(image.path, spec.pixels), str(image.labels), stated


def stamps(path: Path, pixels: PixelSpec) -> list[list[int]]:
    """The `stamp` of each file of the image at `path`."""
    return [stamp(each) for each in files_of(path, pixels.files)]


def open_index(file: Path) -> Index:
    """Map an index that was saved. Raises OSError, ValueError, LookupError or TypeError if the file is damaged."""
    arrays, facts = map_arrays(file)
    parts: dict[str, Any] = {**arrays, **facts, "names": tuple(facts["names"])}
    parts["problems"] = tuple(Problem(*each) for each in facts["problems"])
    parts["pixels"] = PixelSpec.of({"pixels": facts["pixels"]})
    for name, kind in (("paths", Paths), ("file_names", Texts)):
        parts[name] = kind(parts.pop(f"{name}.text"), parts.pop(f"{name}.offsets"))
    return Index(file=file, **parts)


def find_index(file: Path) -> Index | None:
    """The index that was saved in `file`, None if there is none or if it is damaged."""
    return INDEXES.find(file, open_index)


def save_index(index: Index, file: Path, is_alone: bool = False) -> Index:
    """Save the index and map it, or, with a line, hand it back as it is where that can't be done."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in vars(index).items():
        if isinstance(value, Stored):
            arrays |= {f"{name}.text": value.text, f"{name}.offsets": value.offsets}
        elif isinstance(value, np.ndarray):
            arrays[name] = value
    facts = {"names": index.names, "problems": list(map(astuple, index.problems)), "skipped": index.skipped}
    facts["pixels"] = index.pixels.as_dict()
    INDEXES.write(file, lambda temporary: write_arrays(temporary, arrays, facts), is_alone)
    saved = find_index(file)
    return index if saved is None else saved
