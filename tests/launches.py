"""What a computation asks of a device: kernels launched, and results that the host waits for. No device is needed."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
ALLOCATES = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
RESHAPES = {aten._unsafe_view, aten.detach, aten.lift_fresh, aten._reshape_alias}
# The result, or its shape, must be known to the host before it can go on.
READS = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.nonzero_numpy,
    aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount,
}  # fmt: skip


class Launches(TorchDispatchMode):
    """While entered, notes the operations that are neither views nor allocations, a kernel each at least.

    `reads`: those among them that make the host wait for the device; an index by a mask, and a count that sets a shape,
    are some. With `forbid_reads` such an operation raises AssertionError at its own line.
    """

    def __init__(self, forbid_reads: bool = False) -> None:
        super().__init__()
        self.forbid_reads = forbid_reads
        self.names: list[str] = []
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if _is_read(packet, args, kwargs or {}):
            assert not self.forbid_reads, f"{func} makes the host wait for the device"
            self.reads.append(str(func))
        if func.namespace == "aten" and not func.is_view and packet not in ALLOCATES | RESHAPES:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def _is_read(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if packet in READS:
        return True
    if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if packet is aten.repeat_interleave:
        return kwargs.get("output_size") is None
    if packet is aten._to_copy:
        target = kwargs.get("device")
        return target is not None and target.type == "cpu" != args[0].device.type and not kwargs.get("non_blocking")
    if packet is aten.copy_:
        waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        return args[0].device.type == "cpu" != args[1].device.type and waits
    return False
