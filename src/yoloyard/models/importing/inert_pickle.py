"""Pickles read without running anything that they name.

A pickle is a small program: it names functions and classes, and the usual reader imports and calls them. Here every
name it mentions, without exception, becomes an `Inert` placeholder that only remembers what it was given; the tree of
placeholders is then looked through by code that knows a few names. `torch_files.py` cuts the tensors out of raw bytes.
"""

import math
import pickle
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar, NamedTuple

import torch

FLOATS = {"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16}
INTEGERS = {"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8}
STORAGE_TYPES = {f"torch.{kind}Storage": dtype for kind, dtype in (FLOATS | INTEGERS | {"Bool": torch.bool}).items()}
PARAMETER_BUILDERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")


class Inert:
    """Stands for an object of whatever class, or the result of whatever function, a pickle names; does nothing."""

    __slots__ = ("arguments", "entries", "state")
    path = ""  # module and name, as the file has it
    arguments: tuple[Any, ...]
    state: Any
    entries: dict[Any, Any]

    def __new__(cls, *arguments: Any, **_keywords: Any) -> "Inert":
        placeholder = super().__new__(cls)
        placeholder.arguments, placeholder.state, placeholder.entries = arguments, None, {}
        return placeholder

    # what the pickle machine calls on an object while it fills it

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, element: Any) -> None:
        pass


class Storage(NamedTuple):  # a tuple, since a pickle may write attributes of what it has made
    """A run of numbers in the file."""

    key: str
    dtype: torch.dtype
    length: int


class TensorView(NamedTuple):
    """A tensor that has not been read yet: a storage and how to look at it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


KEYS = (str, int, float, bytes, type(None), Inert)  # what a dict or a set of the tree may have as keys
PythonUnpickler: Any = pickle._Unpickler


def _keys_checked(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """A step of the pickle machine that fills a dict or a set; `keys` is their place on its stack."""

    def checked(machine: Any) -> None:
        for key in machine.stack[keys]:
            if not isinstance(key, KEYS):
                raise pickle.UnpicklingError(f"a {type(key).__name__} as a key")
        load(machine)

    return checked


class InertUnpickler(PythonUnpickler):
    """Builds dicts, lists, tuples, numbers and strings; everything that a file names becomes a kind of `Inert`.

    It is Python's own unpickler written in Python: the one in C allocates whatever size a file says. Keys may not be
    tuples: computing the hash of one that is nested a million times ends the interpreter.

    `names` collects the functions and classes that the pickle asks for, `storages` those of its tensors by their keys.
    """

    dispatch: ClassVar = PythonUnpickler.dispatch | {
        pickle.SETITEM[0]: _keys_checked(PythonUnpickler.load_setitem, slice(-2, -1)),
        pickle.SETITEMS[0]: _keys_checked(PythonUnpickler.load_setitems, slice(None, None, 2)),
        pickle.DICT[0]: _keys_checked(PythonUnpickler.load_dict, slice(None, None, 2)),
        pickle.ADDITEMS[0]: _keys_checked(PythonUnpickler.load_additems, slice(None)),
        pickle.FROZENSET[0]: _keys_checked(PythonUnpickler.load_frozenset, slice(None)),
    }

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.names: set[str] = set()
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> type[Inert]:
        path = f"{module}.{name}"
        self.names.add(path)
        return type("Inert", (Inert,), {"__slots__": (), "path": path})

    def persistent_load(self, identity: Any) -> Any:
        if identity[0] == "module":  # old files: a class with the source text that it had
            return identity[1]
        kind, storage_type, key, _location, length, *view = identity
        if any(view):
            raise pickle.UnpicklingError("storages that are parts of others")
        if kind != "storage" or storage_type.path not in STORAGE_TYPES:
            raise pickle.UnpicklingError(f"unknown kind of storage {storage_type.path}")
        storage = Storage(str(key), STORAGE_TYPES[storage_type.path], int(length))
        self.storages[storage.key] = storage
        return storage


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
    if len(shape) != len(strides) or math.prod(shape) > storage.length:
        return None
    return TensorView(storage, offset, shape, strides)


def _whole_numbers(node: Any) -> tuple[int, ...] | None:
    """A tuple, or a torch.Size, of whole numbers; None for anything else."""
    if isinstance(node, Inert) and node.path == "torch.Size" and node.arguments:
        node = node.arguments[0]
    if isinstance(node, tuple) and all(isinstance(value, int) for value in node):
        return node
    return None
