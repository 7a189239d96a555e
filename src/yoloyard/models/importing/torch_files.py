"""Files of `torch.save` in its two formats: which tree they hold, and the numbers of its tensors.

- zip (PyTorch 1.6 and later): `data.pkl` and an entry for each storage, uncompressed.
- legacy: a row of pickles (magic number, version, machine, the tree, the keys of the storages), then the storages.
"""

import math
import pickle
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yoloyard.common.errors import UserError
from yoloyard.config.known_weights import where_to_get
from yoloyard.models.importing.inert_pickle import InertUnpickler, Storage, TensorView

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
# the tree, the names that it asks for, and what gives the bytes of a storage: too few where the file is damaged
Content = tuple[Any, tuple[str, ...], Callable[[Storage], bytes | memoryview]]


class Checkpoint:
    """A file of `torch.save`.

    `root` is the tree that was saved, `names` every function and class that the file asks for; none of them is run.
    Raises UserError if the file can't be opened, is cut, or is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path, content = path, read_bytes(path)
        read = _read_zip if content.startswith(ZIP_MAGIC) else _read_legacy
        self.root, self.names, self._bytes_of = read(path, content)

    def read(self, view: TensorView) -> Tensor:
        """The numbers of a tensor, contiguous. Raises UserError if the file doesn't hold them all."""
        storage, shape, strides = view.storage, view.shape, view.strides
        if 0 in shape:
            return torch.empty(shape, dtype=storage.dtype)
        last = view.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        negative = min(view.offset, *shape, *strides, 0) < 0
        # more numbers than the storage has: repeated by a stride of 0, which could unfold to any size
        if negative or last >= storage.length or math.prod(shape) > storage.length:
            raise UserError(f"{self.path} is damaged: a tensor reaches beyond its storage {storage.key!r}.")
        content = bytearray(self._bytes_of(storage))
        if len(content) < storage.length * storage.dtype.itemsize:
            raise UserError(f"{self.path} is damaged: storage {storage.key!r} is shorter than its index says.")
        numbers = torch.frombuffer(content, dtype=storage.dtype, count=storage.length)
        # a copy: a part of a storage must not keep all of it
        return numbers.as_strided(shape, strides, view.offset).clone(memory_format=torch.contiguous_format)


def is_torch_file(path: Path) -> bool:
    """Does the file begin like one of `torch.save`? Raises UserError if it can't be read."""
    return read_bytes(path, len(LEGACY_MAGIC)).startswith((ZIP_MAGIC, LEGACY_MAGIC))


def read_bytes(path: Path, count: int = -1) -> bytes:
    """The first `count` bytes of a weights file, or all. Raises UserError, saying where to get a published file."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        hint = where_to_get(path.name) if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"cannot read the weights {path}: {error.strerror or error}.{hint}") from error


def names_in(path: Path) -> tuple[str, ...]:
    """The functions and classes that a file of `torch.save` asks for; none for files of another kind.

    Raises UserError if the file can't be read.
    """
    return Checkpoint(path).names if is_torch_file(path) else ()


def _read_zip(path: Path, content: bytes) -> Content:
    try:
        archive = zipfile.ZipFile(BytesIO(content))
    except Exception as error:  # a damaged directory may fail in any way
        raise UserError(f"cannot read {path}: it was cut short or damaged ({error}).") from error
    entries = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(entries) != 1:
        raise UserError(f"{path} is a zip archive, but not one that torch.save writes.")
    folder = entries[0].removesuffix("data.pkl")

    def read_entry(name: str) -> bytes:
        """One file of the archive; its checksum is tested."""
        try:
            entry = archive.getinfo(f"{folder}{name}")
            if entry.compress_type != zipfile.ZIP_STORED:  # torch.save never compresses; this could unfold to any size
                raise UserError(f"{path} is damaged: {name!r} is compressed.")
            return archive.read(entry)
        except (OSError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged: {name!r} cannot be read ({error!r}).") from error

    if f"{folder}byteorder" in archive.namelist() and read_entry("byteorder") != b"little":
        raise _big_endian(path)
    unpickler = InertUnpickler(BytesIO(read_entry("data.pkl")))
    root = _load(unpickler, path)
    return root, tuple(sorted(unpickler.names)), lambda storage: read_entry(f"data/{storage.key}")


def _read_legacy(path: Path, content: bytes) -> Content:
    stream = BytesIO(content)
    if not content.startswith(LEGACY_MAGIC):
        raise UserError(f"{path} is no file of torch.save.")
    _magic, _version, machine = (_load(InertUnpickler(stream), path) for _ in range(3))
    if not isinstance(machine, dict) or not machine.get("little_endian", True):
        raise _big_endian(path)
    unpickler = InertUnpickler(stream)
    root = _load(unpickler, path)
    keys = _load(InertUnpickler(stream), path)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UserError(f"{path} is damaged: it has no list of its storages.")
    # The storages follow one another, each after the count of its numbers.
    parts: dict[str, memoryview] = {}
    place = stream.tell()
    for key in keys:
        count = int.from_bytes(content[place : place + 8], "little")
        known = unpickler.storages.get(key)
        if known is None or known.length != count:
            raise UserError(f"{path} is damaged: storage {key!r} is not where it should be.")
        start, place = place + 8, place + 8 + count * known.dtype.itemsize
        parts[key] = memoryview(content)[start:place]
    return root, tuple(sorted(unpickler.names)), lambda storage: parts.get(storage.key, b"")


def _load(unpickler: InertUnpickler, path: Path) -> Any:
    try:
        return unpickler.load()
    except Exception as error:  # a broken pickle may fail in any way; nothing of the file has run
        raise UserError(f"cannot read {path}: its pickle is broken ({error!r}).") from error


def _big_endian(path: Path) -> UserError:
    return UserError(f"{path} was written on a big-endian machine; save it again on a little-endian one.")
