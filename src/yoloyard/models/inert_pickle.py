"""Files of `torch.save`, read without running anything that they name.

A pickle is a small program: it names functions and classes, and the usual reader imports and calls them. Here every
name it mentions, without exception, becomes an `Inert` placeholder that only remembers what it was given; the tree of
placeholders is then looked through by code that knows a few names. Tensors are cut out of the file's raw bytes.
"""

import math
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from yoloyard.errors import UserError

STORAGE_TYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
PARAMETER_BUILDERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")


class Inert:
    """Stands for an object of whatever class, or the result of whatever function, a pickle names; does nothing."""

    __slots__ = ("arguments", "elements", "entries", "state")
    path = ""  # module and name, as the file has it
    arguments: tuple[Any, ...]
    state: Any
    entries: dict[Any, Any]
    elements: list[Any]

    def __new__(cls, *arguments: Any, **_keywords: Any) -> "Inert":
        placeholder = super().__new__(cls)
        placeholder.arguments, placeholder.state = arguments, None
        placeholder.entries, placeholder.elements = {}, []
        return placeholder

    # what the pickle machine calls on an object while it fills it

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, element: Any) -> None:
        self.elements.append(element)


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the archive."""

    key: str
    dtype: torch.dtype
    length: int


@dataclass(frozen=True)
class TensorView:
    """A tensor that has not been read yet: a storage and how to look at it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _InertUnpickler(pickle.Unpickler):
    """Builds dicts, lists, tuples, numbers and strings; everything that a file names becomes a kind of `Inert`."""

    def __init__(self, content: bytes) -> None:
        super().__init__(BytesIO(content))
        self.names: set[str] = set()

    def find_class(self, module: str, name: str) -> type[Inert]:
        path = f"{module}.{name}"
        self.names.add(path)
        return type("Inert", (Inert,), {"__slots__": (), "path": path})

    def persistent_load(self, identity: Any) -> Storage:
        kind, storage_type, key, _location, length = identity
        if kind != "storage" or storage_type.path not in STORAGE_TYPES:
            raise pickle.UnpicklingError(f"unknown kind of storage {storage_type.path}")
        return Storage(str(key), STORAGE_TYPES[storage_type.path], int(length))


class Checkpoint:
    """An open file of `torch.save` in the zip format (PyTorch 1.6 and later). To be used in a `with` statement.

    `root` is the tree that was saved, `names` every function and class that the file asks for. Raises UserError if
    the file can't be opened, is cut, or is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"cannot read {path}: it was cut short or damaged ({error}).") from error
        entries = [name for name in self._archive.namelist() if name.endswith("/data.pkl")]
        if len(entries) != 1:
            raise UserError(f"{path} is a zip archive, but not one that torch.save writes.")
        self._folder = entries[0].removesuffix("data.pkl")
        if f"{self._folder}byteorder" in self._archive.namelist() and self._entry("byteorder") != b"little":
            raise UserError(f"{path} was written on a big-endian machine; save it again on a little-endian one.")
        unpickler = _InertUnpickler(self._entry("data.pkl"))
        try:
            self.root: Any = unpickler.load()
        except Exception as error:  # a broken pickle may fail in any way; nothing of the file has run
            raise UserError(f"cannot read {path}: its pickle is broken ({error!r}).") from error
        self.names = tuple(sorted(unpickler.names))

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()

    def _entry(self, name: str) -> bytes:
        """One file of the archive; its checksum is tested."""
        try:
            entry = self._archive.getinfo(f"{self._folder}{name}")
            if entry.compress_type != zipfile.ZIP_STORED:  # torch.save never compresses; this could unfold to any size
                raise UserError(f"{self.path} is damaged: {name!r} is compressed.")
            return self._archive.read(entry)
        except (OSError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path} is damaged: {name!r} cannot be read ({error!r}).") from error

    def read(self, view: TensorView) -> Tensor:
        """The numbers of a tensor, contiguous. Raises UserError if the archive doesn't hold them all."""
        storage, shape, strides = view.storage, view.shape, view.strides
        if 0 in shape:
            return torch.empty(shape, dtype=storage.dtype)
        last = view.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        negative = min(view.offset, *shape, *strides, 0) < 0
        # more numbers than the storage has: repeated by a stride of 0, which could unfold to any size
        if negative or last >= storage.length or math.prod(shape) > storage.length:
            raise UserError(f"{self.path} is damaged: a tensor reaches beyond its storage {storage.key!r}.")
        content = bytearray(self._entry(f"data/{storage.key}"))
        if len(content) < storage.length * storage.dtype.itemsize:
            raise UserError(f"{self.path} is damaged: storage {storage.key!r} is shorter than its index says.")
        numbers = torch.frombuffer(content, dtype=storage.dtype, count=storage.length)
        return numbers.as_strided(shape, strides, view.offset).contiguous()


def as_mapping(node: Any) -> Mapping[Any, Any]:
    """A dict or an OrderedDict of the tree as a mapping; anything else as an empty one."""
    if isinstance(node, dict):
        return node
    if isinstance(node, Inert) and node.path == "collections.OrderedDict":
        return node.entries
    return {}


def as_tensor(node: Any) -> TensorView | None:
    """The tensor or parameter that `node` of the tree is, None for anything else."""
    if isinstance(node, Inert) and node.path in PARAMETER_BUILDERS and node.arguments:
        node = node.arguments[0]
    if not isinstance(node, Inert) or node.path != "torch._utils._rebuild_tensor_v2" or len(node.arguments) < 4:
        return None
    storage, offset = node.arguments[:2]
    shape, strides = _whole_numbers(node.arguments[2]), _whole_numbers(node.arguments[3])
    if not isinstance(storage, Storage) or not isinstance(offset, int) or shape is None or strides is None:
        return None
    return TensorView(storage, offset, shape, strides) if len(shape) == len(strides) else None


def _whole_numbers(node: Any) -> tuple[int, ...] | None:
    """A tuple, or a torch.Size, of whole numbers; None for anything else."""
    if isinstance(node, Inert) and node.path == "torch.Size" and node.arguments:
        node = node.arguments[0]
    if isinstance(node, tuple) and all(isinstance(value, int) for value in node):
        return node
    return None
