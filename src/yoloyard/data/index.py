"""The index of a split: every picture's path, size and boxes as flat arrays, kept in a cache and memory-mapped.

Shapes: N pictures, n boxes of all pictures, k boxes of one picture.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from yoloyard.data.data_yaml import DataSpec
from yoloyard.data.pictures import examine
from yoloyard.data.problems import Problem
from yoloyard.data.sources import label_path, list_images, parse_labels
from yoloyard.errors import UserError
from yoloyard.files import write_whole, write_whole_text

# Part of the cache's key: raise it whenever what is stored, or how labels are understood, changes.
FORMAT_VERSION = 2
KEPT_CACHES = 50
READING_THREADS = 4  # files on network disks come one round trip each


class Paths(Sequence[Path]):
    """Paths stored end to end in one array of bytes, so that a hundred thousand are shared and not copied."""

    def __init__(self, text: np.ndarray, offsets: np.ndarray) -> None:
        self.text, self.offsets = text, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, position: int) -> Path: ...

    @overload
    def __getitem__(self, position: slice) -> Sequence[Path]: ...

    def __getitem__(self, position: int | slice) -> Path | Sequence[Path]:
        if isinstance(position, slice):
            return [self[each] for each in range(*position.indices(len(self)))]
        position = range(len(self))[position]
        return Path(os.fsdecode(self.text[self.offsets[position] : self.offsets[position + 1]].tobytes()))


@dataclass(frozen=True, eq=False)
class Index:
    """Pictures and boxes of a split. The position of a picture in it is its image id."""

    names: tuple[str, ...]
    paths: Paths
    sizes: np.ndarray  # int32 (N, 2) height, width of the original, EXIF orientation applied
    offsets: np.ndarray  # int64 (N + 1): picture i has the boxes offsets[i] to offsets[i + 1]
    boxes: np.ndarray  # float32 (n, 4) xyxy pixels of the original
    labels: np.ndarray  # int64 (n,)
    ignore: np.ndarray  # bool (n,): crowd and difficult, neither taught nor counted against
    problems: tuple[Problem, ...]  # what was left out and why, with file and line
    folder: Path | None = None  # the cache that the arrays are mapped from
    skipped: int = 0  # pictures that the split names and that can't be used

    def __len__(self) -> int:
        return len(self.sizes)

    def annotations(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes float32 (k, 4) xyxy in pixels of the original, labels int64 (k,), ignore bool (k,); copies."""
        here = slice(int(self.offsets[position]), int(self.offsets[position + 1]))
        return np.array(self.boxes[here]), np.array(self.labels[here]), np.array(self.ignore[here])

    def __reduce__(self) -> tuple[object, ...]:
        # A worker that is spawned maps the same files instead of receiving the arrays.
        if self.folder is not None:
            return open_index, (self.folder,)
        parts = (self.names, self.paths, self.sizes, self.offsets, self.boxes, self.labels, self.ignore, self.problems)
        return Index, (*parts, None, self.skipped)


def load_index(spec: DataSpec, split: str, say: Callable[[str], None] = lambda line: None) -> Index:
    """The index of a split, from the cache if nothing has changed: labels' content, images, classes, format.

    Pictures that are unreadable or whose labels are wrong are left out and named in `problems`. Nothing is written
    beside the user's files; where the cache can't be written, the index is made anew each time. Says through `say`
    when many pictures have to be examined.
    Raises UsageError or UserError if there are no images, no usable ones, or not a single box.
    """
    index = read_split(spec, split, say)
    require_boxes(index, spec, split)
    return index


def read_split(spec: DataSpec, split: str, say: Callable[[str], None] = lambda line: None) -> Index:
    """The same, but also of a split without a single usable picture or box. Raises if there are no images at all."""
    images, missing = list_images(spec, split)
    with ThreadPoolExecutor(READING_THREADS) as threads:
        files = list(threads.map(_read_labels, images))
    # The key ends the folder's name; changed labels give another folder, so that a mapped one never changes.
    folder = cache_folder() / _key(spec, images, files, missing)
    try:
        index = open_index(folder)
    except (OSError, ValueError, KeyError, EOFError, TypeError):
        index = _build(spec, images, files, missing, say, split)
        return save_index(index, folder) if len(index.boxes) else index  # an empty file can't be mapped
    with contextlib.suppress(OSError):  # a cache that is only for reading is as good
        os.utime(folder)
    return index


def pictures_folder() -> Path:
    """Where the facts of pictures are kept."""
    return cache_folder().parent / "pictures"


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
    problems = tuple(Problem(*words) for words in facts["problems"])
    return Index(tuple(facts["names"]), paths, problems=problems, folder=folder, skipped=facts["skipped"], **arrays)


Labels = tuple[Path, bytes | None, Problem | None]


def _read_labels(image: Path) -> Labels:
    """Label file, its content (None: there is none) and, if it can't be read, why."""
    path = label_path(image)
    try:
        return path, path.read_bytes(), None
    except (FileNotFoundError, NotADirectoryError):
        return path, None, None
    except OSError as error:
        what = f"cannot read the labels ({error.strerror or error})"
        return path, None, Problem("label unreadable", str(path), what, "image skipped")


def _key(spec: DataSpec, images: list[Path], files: list[Labels], missing: list[Problem]) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, spec.names, list(map(str, missing))]).encode())
    for image, (path, content, failure) in zip(images, files, strict=True):
        try:
            state = image.stat()
            stamp = [state.st_size, state.st_mtime_ns]
        except OSError:
            stamp = []
        content_digest = None if content is None else hashlib.sha256(content).hexdigest()
        digest.update(json.dumps([str(image), stamp, str(path), content_digest, failure and str(failure)]).encode())
    return digest.hexdigest()[:32]


def _build(
    spec: DataSpec,
    images: list[Path],
    files: list[Labels],
    missing: list[Problem],
    say: Callable[[str], None],
    split: str,
) -> Index:
    pictures = examine(images, pictures_folder(), say, split)
    problems, kept, sizes = list(missing), [], []
    boxes, labels, counts = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.int64)], [0]
    for image, (path, content, failure), picture in zip(images, files, pictures, strict=True):
        if picture.problem:
            problems.append(picture.problem)
            continue
        if failure:
            problems.append(failure)
            continue
        parsed = parse_labels(path, content or b"", len(spec.names))
        problems += parsed.problems
        if not parsed.usable:
            continue
        height, width = picture.height, picture.width
        kept.append(os.fsencode(image))
        sizes.append((height, width))
        boxes.append((parsed.boxes_norm * [width, height, width, height]).astype(np.float32))
        labels.append(parsed.labels)
        counts.append(len(parsed.labels))
    return Index(
        names=spec.names,
        paths=Paths(np.frombuffer(b"".join(kept), np.uint8), np.cumsum([0, *map(len, kept)], dtype=np.int64)),
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        offsets=np.cumsum(counts, dtype=np.int64),
        boxes=np.concatenate(boxes),
        labels=np.concatenate(labels),
        ignore=np.zeros(sum(counts), bool),
        problems=tuple(problems),
        skipped=len(images) + len(missing) - len(kept),
    )


def require_boxes(index: Index, spec: DataSpec, split: str) -> None:
    """Raise UserError if there is nothing in `split` that can be learnt from."""
    if not len(index):
        raise UserError(
            f"{spec.path}: none of the {index.skipped} images of {split!r} can be used; first: {index.problems[0]}"
        )
    if not len(index.boxes):
        raise UserError(
            f"{spec.path}: the {len(index)} images of {split!r} have not a single label; "
            f"the labels of {index.paths[0]} were looked for in {label_path(index.paths[0])}"
        )


def save_index(index: Index, folder: Path) -> Index:
    """Save the index and map it, or hand it back as it is where the cache can't be written."""
    arrays = {
        "path_text": index.paths.text,
        "path_offsets": index.paths.offsets,
        "sizes": index.sizes,
        "offsets": index.offsets,
        "boxes": index.boxes,
        "labels": index.labels,
        "ignore": index.ignore,
    }
    facts = {
        "names": index.names,
        "problems": [(problem.kind, problem.where, problem.what, problem.effect) for problem in index.problems],
        "skipped": index.skipped,
        "lengths": {name: len(array) for name, array in arrays.items()},
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    except OSError:
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
    except (OSError, UserError):
        return index
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find_index(folder: Path) -> Index | None:
    """The index that was saved in `folder`, None if there is none or if it isn't whole."""
    try:
        return open_index(folder)
    except (OSError, ValueError, KeyError, EOFError, TypeError):
        return None


def _array_writer(array: np.ndarray) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:  # np.save would append a suffix to a path
            np.save(file, array, allow_pickle=False)

    return write


def _forget_old_caches(parent: Path) -> None:
    caches = sorted((each for each in parent.iterdir() if each.is_dir()), key=lambda each: each.stat().st_mtime)
    for cache in caches[:-KEPT_CACHES]:
        shutil.rmtree(cache, ignore_errors=True)
