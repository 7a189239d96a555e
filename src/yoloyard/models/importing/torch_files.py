"""Files of `torch.save` in its two formats: which tree they hold, and the numbers of its tensors.

- zip (PyTorch 1.6 and later): `data.pkl` and an entry for each storage, uncompressed.
- legacy: a row of pickles (magic number, version, machine, the tree, the keys of the storages), then the storages.
"""

import math
import pickle
import re
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yoloyard.common.errors import UserError
from yoloyard.models.importing.inert_pickle import InertUnpickler, Storage, TensorView

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


class Checkpoint:
    """A file of `torch.save`.

    `root` is the tree that was saved, `names` every function and class that the file asks for; none of them is run.
    Raises UserError if the file can't be opened, is cut, or is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
        self._container = (_Zip if content.startswith(ZIP_MAGIC) else _Legacy)(path, content)
        self.root, self.names = self._container.root, self._container.names

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
        content = self._container.storage(storage)
        if len(content) < storage.length * storage.dtype.itemsize:
            raise UserError(f"{self.path} is damaged: storage {storage.key!r} is shorter than its index says.")
        numbers = torch.frombuffer(content, dtype=storage.dtype, count=storage.length)
        tensor = numbers.as_strided(shape, strides, view.offset)
        # a part of a storage must not keep all of it
        return tensor.contiguous() if tensor.numel() == storage.length else tensor.clone().contiguous()


def is_torch_file(path: Path) -> bool:
    """Does the file begin like one of `torch.save`? Raises UserError if it can't be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(LEGACY_MAGIC)).startswith((ZIP_MAGIC, LEGACY_MAGIC))
    except OSError as error:
        hint = _where_to_get(path) if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"cannot read the weights {path}: {error.strerror or error}.{hint}") from error


def _where_to_get(path: Path) -> str:
    """Where a file such as yolo11n.pt that is missing comes from, and under which licence; empty for other names."""
    published = re.match(r"(yolo(?:v5|v8|11|12)[nsmlx]6?)(\D*)\.pt$", path.name.lower())
    if published is None:
        return ""
    repository = "yolov5" if published[1].startswith("yolov5") and not published[2] else "assets"
    return (
        f" Such files are at https://github.com/ultralytics/{repository}/releases, under AGPL-3.0 or ultralytics' "
        f"enterprise licence; yoloyard downloads nothing. `yoloyard train --model {published[1]}` starts from random "
        "weights."
    )


def names_in(path: Path) -> tuple[str, ...]:
    """The functions and classes that a file of `torch.save` asks for; none for files of another kind.

    Raises UserError if the file can't be read.
    """
    return Checkpoint(path).names if is_torch_file(path) else ()


class _Zip:
    """`root`, `names`, and the raw bytes of each storage: at least as many as it says, or UserError."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(BytesIO(content))
        except Exception as error:  # a damaged directory may fail in any way
            raise UserError(f"cannot read {path}: it was cut short or damaged ({error}).") from error
        entries = [name for name in self._archive.namelist() if name.endswith("/data.pkl")]
        if len(entries) != 1:
            raise UserError(f"{path} is a zip archive, but not one that torch.save writes.")
        self._folder = entries[0].removesuffix("data.pkl")
        if f"{self._folder}byteorder" in self._archive.namelist() and self._entry("byteorder") != b"little":
            raise _big_endian(path)
        unpickler = InertUnpickler(BytesIO(self._entry("data.pkl")))
        self.root = _load(unpickler, path)
        self.names = tuple(sorted(unpickler.names))

    def storage(self, storage: Storage) -> bytearray:
        return bytearray(self._entry(f"data/{storage.key}"))

    def _entry(self, name: str) -> bytes:
        """One file of the archive; its checksum is tested."""
        try:
            entry = self._archive.getinfo(f"{self._folder}{name}")
            if entry.compress_type != zipfile.ZIP_STORED:  # torch.save never compresses; this could unfold to any size
                raise UserError(f"{self._path} is damaged: {name!r} is compressed.")
            return self._archive.read(entry)
        except (OSError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise UserError(f"{self._path} is damaged: {name!r} cannot be read ({error!r}).") from error


class _Legacy:
    """Offers what `_Zip` offers."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._path, self._content = path, content
        stream = BytesIO(content)
        if not content.startswith(LEGACY_MAGIC):
            raise UserError(f"{path} is no file of torch.save.")
        _magic, _version, machine = (_load(InertUnpickler(stream), path) for _ in range(3))
        if not isinstance(machine, dict) or not machine.get("little_endian", True):
            raise _big_endian(path)
        unpickler = InertUnpickler(stream)
        self.root = _load(unpickler, path)
        self.names = tuple(sorted(unpickler.names))
        keys = _load(InertUnpickler(stream), path)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise UserError(f"{path} is damaged: it has no list of its storages.")
        # The storages follow one another, each after the count of its numbers.
        self._places: dict[str, int] = {}
        place = stream.tell()
        for key in keys:
            count = int.from_bytes(content[place : place + 8], "little")
            known = unpickler.storages.get(key)
            if known is None or known.length != count:
                raise UserError(f"{path} is damaged: storage {key!r} is not where it should be.")
            self._places[key] = place + 8
            place += 8 + count * known.dtype.itemsize

    def storage(self, storage: Storage) -> bytearray:
        place = self._places.get(storage.key, len(self._content))
        return bytearray(self._content[place : place + storage.length * storage.dtype.itemsize])


def _load(unpickler: InertUnpickler, path: Path) -> Any:
    try:
        return unpickler.load()
    except Exception as error:  # a broken pickle may fail in any way; nothing of the file has run
        raise UserError(f"cannot read {path}: its pickle is broken ({error!r}).") from error


def _big_endian(path: Path) -> UserError:
    return UserError(f"{path} was written on a big-endian machine; save it again on a little-endian one.")
