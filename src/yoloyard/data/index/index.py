"""The index of a split: every image's path, size and boxes as flat arrays, kept in a cache and memory-mapped.

Shapes: N images, n boxes of all images, k boxes of one image.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import overload

import numpy as np

from yoloyard.common.errors import UserError
from yoloyard.common.files import write_whole, write_whole_text
from yoloyard.common.threads import map_in_threads
from yoloyard.data.audit.problems import Problem
from yoloyard.data.formats.coco_json import CocoSet, coco_labels, parse_coco
from yoloyard.data.formats.data_yaml import DataSpec
from yoloyard.data.formats.labels import Labels
from yoloyard.data.formats.layout import LABEL_SUFFIXES
from yoloyard.data.formats.sources import SourceImage, Sources, find_sources, parse_label_files
from yoloyard.data.formats.yolo_txt import pose_length
from yoloyard.data.index.image_facts import ImageFacts, examine
from yoloyard.data.index.not_kept import warn_not_kept
from yoloyard.data.index.unchanged import look, noted, write_note
from yoloyard.data.pixels.decode import IMAGE_SUFFIXES

log = logging.getLogger(__name__)

# Part of the cache's key: raise it whenever what is stored, or how labels are understood, changes.
FORMAT_VERSION = 5
KEPT_CACHES = 50
KEPT_LOCK_SECONDS = 86400
WATCHED_SUFFIXES = IMAGE_SUFFIXES.union(LABEL_SUFFIXES, [".json"])
READING_THREADS = 4  # files on network disks come one round trip each


class Texts(Sequence[str]):
    """Texts stored end to end in one array of bytes, so that a hundred thousand are shared and not copied."""

    def __init__(self, text: np.ndarray, offsets: np.ndarray) -> None:
        self.text, self.offsets = text, offsets

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Store `texts`, file names in any encoding among them."""
        encoded = [os.fsencode(text) for text in texts]
        return cls(np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, position: int) -> str: ...

    @overload
    def __getitem__(self, position: slice) -> Sequence[str]: ...

    def __getitem__(self, position: int | slice) -> str | Sequence[str]:
        if isinstance(position, slice):
            return [self[each] for each in range(*position.indices(len(self)))]
        position = range(len(self))[position]
        return os.fsdecode(self.text[self.offsets[position] : self.offsets[position + 1]].tobytes())


class Paths(Sequence[Path]):
    """Paths stored as `Texts` are."""

    def __init__(self, text: np.ndarray, offsets: np.ndarray) -> None:
        self.text, self.offsets = text, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, position: int) -> Path: ...

    @overload
    def __getitem__(self, position: slice) -> Sequence[Path]: ...

    def __getitem__(self, position: int | slice) -> Path | Sequence[Path]:
        found = Texts(self.text, self.offsets)[position]
        return Path(found) if isinstance(found, str) else [Path(each) for each in found]


@dataclass(frozen=True, eq=False)
class Index:
    """Images and boxes of a split. The position of an image in it is its image id within the program."""

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
    folder: Path | None = None  # the cache that the arrays are mapped from
    skipped: int = 0  # images that the split names and that can't be used

    def __len__(self) -> int:
        return len(self.sizes)

    def annotations(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes float32 (k, 4) xyxy in pixels of the original, labels int64 (k,), ignore bool (k,); copies."""
        here = slice(int(self.offsets[position]), int(self.offsets[position + 1]))
        return np.array(self.boxes[here]), np.array(self.labels[here]), np.array(self.ignore[here])

    def fingerprint(self) -> str:
        """SHA-256 of what is trained on: classes, file names below the split's folder, sizes, boxes and labels.

        Not of pixels, and not of where the data set lies: a copy on another machine has the same.
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
        separator = os.fsencode(os.sep)
        names = [text[start:end].rpartition(separator)[2] for start, end in itertools.pairwise(ends)]
        return hashlib.sha256(b"\n".join(names)).hexdigest()

    def facts(self) -> dict[str, str | int]:
        """How much there is, and the fingerprint: by which two runs tell whether they had the same data."""
        return {"images": len(self), "boxes": len(self.labels), "skipped": self.skipped, "sha256": self.fingerprint()}

    def __reduce__(self) -> tuple[object, ...]:
        # A worker that is spawned maps the same files instead of receiving the arrays.
        if self.folder is not None:
            return open_index, (self.folder,)
        return Index, tuple(getattr(self, field.name) for field in fields(self))


def load_index(spec: DataSpec, split: str) -> Index:
    """The index of a split, from the cache if nothing has changed: labels' content, images, classes, format.

    Images that are unreadable or whose labels are wrong are left out and named in `problems`. Nothing is written
    beside the user's files; where the cache can't be written, the index is made again each time, with a line.
    Of several processes that need the same one at once, one makes it and the others wait for it. Logs
    when many images have to be examined.
    Raises UsageError or UserError if there are no images, no usable ones, or not a single box.
    """
    index = read_split(spec, split)
    require_boxes(index, spec, split)
    return index


def read_split(spec: DataSpec, split: str) -> Index:
    """The same, but also of a split without a single usable image or box. Raises if there are no images at all."""
    note, began = _note(spec, split), time.time()
    known = noted(note)
    index = None if known is None else find_index(cache_folder() / known)
    if index is not None:
        return index
    sources = find_sources(spec, split)
    before = look(sources.watched, sources.lists, WATCHED_SUFFIXES)
    files = map_in_threads(_read_labels, sources.images, READING_THREADS)
    # The key ends the folder's name; changed labels give another folder, so that a mapped one never changes.
    folder = cache_folder() / _key(spec, sources, files)
    index = find_index(folder)
    if index is None:
        with alone(folder):
            index = find_index(folder)  # another process may have made it meanwhile
            if index is None:
                index = _build(spec, split, sources, files)
                index = save_index(index, folder) if len(index.boxes) else index  # an empty file can't be mapped
    if index.folder is not None:
        write_note(note, folder.name, before, began)
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
        where = f"the labels of {index.paths[0]} were looked for in {find_sources(spec, split).label_place()}"
        first = next((f"; first error: {problem}" for problem in index.problems if problem.is_error), "")
        raise UserError(f"{spec.path}: the {len(index)} images of {split!r} have not a single label; {where}{first}")
    if index.ignore.all():
        raise UserError(
            f"{spec.path}: all {len(index.boxes)} boxes of {split!r} are to be ignored (iscrowd of COCO, difficult of "
            "Pascal VOC), so there is nothing to train on or to count; correct the labels"
        )


def image_facts_folder() -> Path:
    """Where the facts of images are kept."""
    return cache_folder().parent / "images"


def cache_folder() -> Path:
    """Where indexes are kept: YOLOYARD_CACHE, else XDG_CACHE_HOME or ~/.cache, /yoloyard; in it `index`."""
    own = os.environ.get("YOLOYARD_CACHE")
    if own:
        return Path(os.path.abspath(own)) / "index"
    shared = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.path.abspath(shared)) / "yoloyard" / "index"


def open_index(folder: Path) -> Index:
    """Map an index that was saved in `folder`. Raises OSError, ValueError or KeyError if it isn't whole."""
    facts = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in facts["lengths"]}
    for name, length in facts["lengths"].items():
        if len(arrays[name]) != length:
            raise ValueError(f"{folder}/{name}.npy has another length than it was saved with")
    paths = Paths(arrays.pop("path_text"), arrays.pop("path_offsets"))
    file_names = Texts(arrays.pop("name_text"), arrays.pop("name_offsets"))
    problems = tuple(Problem(*parts) for parts in facts["problems"])
    return Index(
        tuple(facts["names"]),
        paths,
        problems=problems,
        file_names=file_names,
        folder=folder,
        skipped=facts["skipped"],
        **arrays,
    )


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Keep other processes from making `folder` too. False where that can't be: nowhere to write, or no locks there."""
    from filelock import FileLock

    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):  # not writable, or a file system without locks
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_old(file: Path) -> bool:
    """Has nobody touched a lock or an unfinished file for so long that nobody can be at work with it?"""
    return time.time() - changed(file) > KEPT_LOCK_SECONDS


def changed(path: Path) -> float:
    """When a file or folder was changed last, in seconds since 1970; now, if another process has just removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


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


def _note(spec: DataSpec, split: str) -> Path:
    """Where it is noted which index belongs to a split, as long as no file changes."""
    entries = [[str(entry.path), str(entry.labels)] for entry in spec.splits.get(split, ())]
    parts = [FORMAT_VERSION, spec.names, spec.keypoint_values, str(spec.path), str(spec.root), split, entries]
    return cache_folder().parent / "unchanged" / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}.json"


def _key(spec: DataSpec, sources: Sources, files: list[bytes | Problem | None]) -> str:
    problems = [str(problem) for problem in sources.problems]
    parts = [FORMAT_VERSION, spec.names, spec.keypoint_values, str(sources.folder), problems]
    digest = hashlib.sha256(json.dumps(parts).encode())
    for coco in sources.coco:
        digest.update(json.dumps([str(coco.path), str(coco.folder), coco.digest()]).encode())
        for name in coco.file_names:
            digest.update(json.dumps(stamp(coco.image(name))).encode())
    for image, content in zip(sources.images, files, strict=True):
        stated = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else content and str(content)
        digest.update(json.dumps([str(image.path), stamp(image.path), str(image.labels), stated]).encode())
    return digest.hexdigest()[:32]


def stamp(path: Path | str) -> list[int]:
    """Length and time of change of a file, by which a changed one is told; empty if it isn't there."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return []
    return [state.st_size, state.st_mtime_ns]


def _build(
    spec: DataSpec,
    split: str,
    sources: Sources,
    files: list[bytes | Problem | None],
) -> Index:
    sets = [parse_coco(file, spec.names) for file in sources.coco]
    problems = [*sources.problems, *(problem for coco in sets for problem in coco.problems)]
    # Images of COCO files come first, by their ids, as other evaluation tools go through them.
    images: dict[Path, str] = {}  # each with its name
    ids: list[int | str] = []
    rows_of: list[list[int]] = []  # the images of each COCO file that are there
    for file, coco in zip(sources.coco, sets, strict=True):
        rows = []
        for row, name in enumerate(coco.file_names):
            image = file.image(name)
            if image in images:
                what = f"another file has labels for {image} too; the labels of an image must be in one"
                problems.append(Problem("label malformed", coco.where(row), what, "these left out"))
            elif not os.path.isfile(image):
                what = f"there is no image {image}"
                problems.append(Problem("image missing", coco.where(row), what, "image skipped"))
            else:
                images[image] = name
                rows.append(row)
        ids += [coco.image_ids[row] for row in rows]
        rows_of.append(rows)
    own = [(source, file) for source, file in zip(sources.images, files, strict=True) if source.path not in images]
    images |= {source.path: os.path.relpath(source.path, sources.folder) for source, _ in own}

    facts = examine(list(images), image_facts_folder(), split)
    labels: list[Labels] = []
    for coco, rows in zip(sets, rows_of, strict=True):
        sizes = np.zeros((len(coco.image_ids), 2), np.int64)
        for row, image_facts in zip(rows, facts[len(labels) :], strict=False):
            sizes[row] = (image_facts.height, image_facts.width)
        all_labels = coco_labels(coco, sizes)
        labels += [all_labels[row] for row in rows]
    labels += _labels_of_images(own, facts[len(labels) :], spec)

    texts = (file for source, file in own if isinstance(file, bytes) and source.labels.suffix.lower() == ".txt")
    if not spec.keypoint_values and (length := pose_length(texts)):
        shape = [(length - 5) // 3, 3] if length % 2 == 0 else [(length - 5) // 2, 2]
        what = (
            f"the rows of {length} numbers seem to be boxes with keypoints: their points lie in the box that the first "
            f"four say. They count as polygons; if they are keypoints, write kpt_shape: {shape} in the data.yaml"
        )
        problems.append(Problem("label with keypoints", str(own[0][0].labels.parent), what))

    kept: list[int] = []  # positions in `images`
    for position, (image_facts, found) in enumerate(zip(facts, labels, strict=True)):
        problems += [image_facts.problem] if image_facts.problem else found.problems
        if not image_facts.problem and found.usable:
            kept.append(position)
    paths, names, none = list(images), list(images.values()), Labels()
    encoded = Texts.of(str(paths[position]) for position in kept)
    image_ids, categories = _source_ids(ids, len(own), sets, len(spec.names))
    return Index(
        names=spec.names,
        paths=Paths(encoded.text, encoded.offsets),
        sizes=np.array([(facts[each].height, facts[each].width) for each in kept], np.int32).reshape(-1, 2),
        offsets=np.cumsum([0, *(len(labels[position].labels) for position in kept)], dtype=np.int64),
        boxes=np.concatenate([none.boxes, *(labels[position].boxes for position in kept)]).astype(np.float32),
        labels=np.concatenate([none.labels, *(labels[position].labels for position in kept)]),
        ignore=np.concatenate([none.ignore, *(labels[position].ignore for position in kept)]),
        problems=tuple(problems),
        source_ids=np.arange(len(kept)) if image_ids is None else np.array(image_ids, np.int64)[kept],
        category_ids=np.array(categories, np.int64),
        file_names=Texts.of(names[position] for position in kept),
        skipped=len(images)
        - len(kept)
        + sum(problem.kind == "image missing" for problem in problems)
        + sum(coco.images_left_out for coco in sets),
    )


def _labels_of_images(
    images: list[tuple[SourceImage, bytes | Problem | None]], facts: list[ImageFacts], spec: DataSpec
) -> list[Labels]:
    """The labels of images that have a file of their own, given with its content, the reason why not, or None."""
    labels: list[Labels] = []
    files, sizes = [], []
    for (image, file), own_facts in zip(images, facts, strict=True):
        own = Labels()
        if own_facts.problem:
            pass  # it says enough
        elif file is None:
            what = f"it has no label file, such as {image.labels}; it counts as an image without objects"
            own.problems.append(Problem("image without label", str(image.path), what))
        elif isinstance(file, Problem):
            own = Labels(problems=[file], usable=False)
        else:
            files.append((len(labels), (image.labels, file)))
            sizes.append((own_facts.height, own_facts.width))
        labels.append(own)
    parsed = parse_label_files([file for _, file in files], spec.names, sizes, spec.keypoint_values)
    for (position, _), own in zip(files, parsed, strict=True):
        labels[position] = own
    return labels


def _source_ids(
    ids: list[int | str], others: int, sets: list[CocoSet], num_classes: int
) -> tuple[list[int] | None, list[int]]:
    """The ids of the images (None: their positions) and of the classes, for other tools.

    They are COCO's if the whole split has them, as numbers, and they are clear: two files may use the same for other
    things.
    """
    categories = sets[0].category_ids if sets else []
    if others or not sets or any(coco.category_ids != categories for coco in sets):
        return None, list(range(num_classes))
    numbers = [number for number in ids if isinstance(number, int)]
    return numbers if len(set(numbers)) == len(ids) else None, categories


def save_index(index: Index, folder: Path) -> Index:
    """Save the index and map it, or, with a line, hand it back as it is where that can't be done."""
    arrays = {
        "path_text": index.paths.text,
        "path_offsets": index.paths.offsets,
        "sizes": index.sizes,
        "offsets": index.offsets,
        "boxes": index.boxes,
        "labels": index.labels,
        "ignore": index.ignore,
        "source_ids": index.source_ids,
        "category_ids": index.category_ids,
        "name_text": index.file_names.text,
        "name_offsets": index.file_names.offsets,
    }
    facts = {
        "names": index.names,
        "problems": [astuple(problem) for problem in index.problems],
        "skipped": index.skipped,
        "lengths": {name: len(array) for name, array in arrays.items()},
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    except OSError as error:
        warn_not_kept(folder, error)
        return index
    try:
        for name, array in arrays.items():
            write_whole(temporary / f"{name}.npy", _array_writer(array))
        write_whole_text(temporary / "index.json", json.dumps(facts))
        try:
            temporary.rename(folder)
        except OSError:
            # Something is there: of a process that started at the same time, or damaged.
            if find_index(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
                temporary.rename(folder)
        _forget_old_caches(folder.parent)
        return open_index(folder)
    except (OSError, UserError) as error:
        warn_not_kept(folder, error)
        return index
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find_index(folder: Path) -> Index | None:
    """The index that was saved in `folder`, None if there is none or if it isn't whole; its time of use is noted."""
    try:
        index = open_index(folder)
    except (OSError, ValueError, KeyError, EOFError, TypeError):
        return None
    with contextlib.suppress(OSError):  # a cache that is only for reading is as good
        os.utime(folder)
    return index


def _array_writer(array: np.ndarray) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:  # np.save would append a suffix to a path
            np.save(file, array, allow_pickle=False)

    return write


def _forget_old_caches(parent: Path) -> None:
    # Folders that begin with a dot are being written by other processes.
    folders = [each for each in parent.iterdir() if each.is_dir() and not each.name.startswith(".")]
    caches = sorted(folders, key=changed)
    for cache in caches[:-KEPT_CACHES]:
        shutil.rmtree(cache, ignore_errors=True)
    for lock in parent.glob("*.lock"):
        if is_old(lock):
            lock.unlink(missing_ok=True)
