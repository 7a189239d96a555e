"""Tensors without content on several devices that are not there: what is asked of which device."""

import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from yoloyard.training.strategies import alone

aten = torch.ops.aten
# They copy from device to device, or do one thing after the other for pairs of tensors that lie together.
BETWEEN_DEVICES = {aten._to_copy, aten.copy_, aten._foreach_copy_, aten._foreach_sub}


class OneDevice(TorchDispatchMode):
    """While entered, an operation with tensors of several devices raises AssertionError, unless it copies them.

    `copies` counts those that bring a map (B, channels, h, w) from one device to another, in either direction.
    """

    copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        devices = {leaf.device for leaf in leaves if isinstance(leaf, Tensor)}
        assert len(devices) < 2 or func.overloadpacket in BETWEEN_DEVICES, f"{func} has tensors on {devices}"
        if func.overloadpacket is aten._to_copy and args[0].dim() == 4:
            source, target = args[0].device, (kwargs or {}).get("device") or args[0].device
            self.copies += source != target and "cpu" not in (source.type, target.type)
        return func(*args, **(kwargs or {}))


def moved(root: nn.Module, device: torch.device, **_: Any) -> nn.Module:
    """What `Module.to` does for tensors without content, for which torch's own fails."""
    for module in root.modules():
        for name, value in module.named_parameters(recurse=False):
            place = torch.empty_like(value, device=device, requires_grad=False)
            setattr(module, name, nn.Parameter(place, requires_grad=value.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))
    return root


def use_fakes(patch: Any, mode: FakeTensorMode) -> None:
    """Let models be moved and copied as `mode` can; `patch` is pytest's monkeypatch."""
    patch.setattr(nn.Module, "to", moved)
    patch.setattr(alone, "copy", SimpleNamespace(deepcopy=lambda model: copy.deepcopy(model, {id(mode): mode})))
