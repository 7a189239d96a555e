"""How much memory a computation needs, counted from its tensors: the same on every machine, and without a device."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """While entered, counts the bytes of all tensors made meanwhile; `peak` is the most that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._live: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                key = storage._cdata
                if key not in self._live:
                    self._live.add(key)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._freed, key, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _freed(self, key: int, size: int) -> None:
        self._live.discard(key)
        self.now -= size


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """While entered, counts the bytes of the activations that the backward pass will need, each storage once."""

    def __init__(self, ignored: list[torch.Tensor]) -> None:
        self.bytes = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in ignored}
        super().__init__(self._pack, lambda value: value)

    def _pack(self, value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.bytes += storage.nbytes()
        return value
