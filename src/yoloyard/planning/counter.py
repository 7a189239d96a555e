"""What operations ask of a device: memory, bytes moved, arithmetic, launches. Tensors may have no content."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
# They move nothing, and no device hears of them.
SILENT = {
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten._unsafe_view,
    aten.detach, aten.lift_fresh, aten._reshape_alias, aten.alias,
}  # fmt: skip


def convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any, **_: Any) -> int:
    """A forward for each gradient that is asked for, of x and of the weight. Torch's formula forgets the groups."""
    transposed, (of_x, of_weight, _bias) = rest[4], rest[7]
    forward = 2 * (x if transposed else grad).numel() * weight.numel() // weight.shape[0]
    return forward * (of_x + of_weight)


# torch's formulas; a multiplication with its addition counts as two. It has none for a CPU's attention.
FLOPS = {
    **flop_registry,
    aten.convolution_backward: convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_efficient_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_efficient_attention_backward
    ],
}


class Counter(TorchDispatchMode):
    """While entered, counts what operations allocate, move and compute. Views and in-place operations allocate nothing.

    `now`: bytes of the storages that are alive. `alive`: the same after each operation that has made one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self._storages: dict[int, weakref.ref[Any]] = {}
        self.begin()

    def begin(self) -> None:
        """Count from here; what is alive stays known."""
        self.start, self.alive = self.now, [self.now]
        self.flops = self.bytes_moved = self.operators = 0
        self._last: Any = None

    @property
    def work(self) -> tuple[int, int, int]:
        """Operations of arithmetic, bytes moved, operators."""
        return self.flops, self.bytes_moved, self.operators

    @contextmanager
    def memory_alone(self) -> Iterator[None]:
        """Inside, what is moved and computed does not count."""
        before = self.work
        yield
        self.flops, self.bytes_moved, self.operators = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        outputs, packet = list(tensors_in(out)), func.overloadpacket
        if sum([self.see(each, each.untyped_storage().nbytes()) for each in outputs]):
            self.alive.append(self.now)
        if not func.is_view and packet not in SILENT:
            self.bytes_moved += sum(map(size_of, (*tensors_in([*args, *kwargs.values()]), *outputs)))
            # Some go through a list tensor by tensor, where an accelerator takes it at once.
            self.operators += packet is not self._last
            self._last = packet
            if packet in FLOPS:
                self.flops += FLOPS[packet](*args, **kwargs, out_val=out)
        return out

    def see(self, tensor: Tensor, size: int) -> bool:
        """Is its storage a new one? Then it counts `size` bytes until it is gone."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return False
        self.now += size
        self._storages[key] = weakref.ref(storage, partial(self._gone, key, size))
        return True

    def _gone(self, key: int, size: int, _: Any) -> None:
        self.now -= size
        del self._storages[key]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of an operation's argument or result."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)


def size_of(tensor: Tensor) -> int:
    """Bytes of its numbers; those of an expanded tensor count once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
