"""One process with several devices (`--strategy placement`): each holds some of the model's blocks and their maps.

It is for images that are too large for a single device. The devices work one after the other.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from yoloyard.common.errors import UsageError
from yoloyard.models.detector import Detector
from yoloyard.training.strategies.alone import Strategy
from yoloyard.training.strategies.cutting import balanced

log = logging.getLogger(__name__)


class Placement(Strategy):
    """Moves the blocks of `model`, which lies on the first of `devices`, so that each device keeps as many bytes.

    Images and the loss are on the first device. Gradients are those of a single device. Raises UsageError for a model
    with fewer blocks than devices.
    """

    def __init__(self, model: Detector, devices: Sequence[torch.device]) -> None:
        super().__init__(model)
        self.device = devices[0]
        kept = kept_bytes(model)
        blocks, bounds = list(kept), [0, *ends_of(list(kept.values()), len(devices))]
        constants = {name: getattr(model.head, name) for name in model.head.constants}  # which the loss shares
        names = {module: name for name, module in model.named_modules()}
        for device, (begin, end) in zip(devices, pairwise(bounds), strict=True):
            own = blocks[begin:end]
            for block in own:
                block.to(device)
                block.register_forward_pre_hook(_to_own_device, with_kwargs=True)
            share = sum(kept[block] for block in own) / sum(kept.values())
            log.info(f"placement: {names[own[0]]} to {names[own[-1]]} on {device}, {share:.0%} of the maps")
        for name, value in constants.items():
            setattr(model.head, name, value)
        model.placed_on = tuple(devices)  # type: ignore[assignment]
        model.forward = MethodType(_forward, model)

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        return super().norm(tensors).to(self.device)


def kept_bytes(detector: Detector) -> dict[nn.Module, int]:
    """What each block keeps of a small image for the backward pass, in the order in which the blocks are called."""
    kept: dict[nn.Module, int] = {}
    known = {parameter.untyped_storage()._cdata for parameter in detector.parameters()}

    def begin(block: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept.setdefault(block, 0)

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if kept and storage._cdata not in known:
            known.add(storage._cdata)
            kept[next(reversed(kept))] += storage.nbytes()
        return tensor

    hooks = [block.register_forward_pre_hook(begin) for block in detector.blocks if block is not None]
    was_training, device = detector.training, next(detector.parameters()).device
    detector.eval()  # leaves statistics and random numbers alone
    side = 2 * max(detector.strides)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.enable_grad():
        maps = detector(torch.zeros(1, detector.image_channels, side, side, device=device))  # holds all that was packed
    del maps
    detector.train(was_training)
    for hook in hooks:
        hook.remove()
    return kept


def ends_of(sizes: Sequence[int], count: int) -> list[int]:
    """Ends of `count` stretches of blocks that keep `sizes`, whose largest sum is the smallest.

    Raises UsageError if there are fewer blocks than that.
    """
    if len(sizes) < count:
        raise UsageError(f"--strategy placement: {len(sizes)} blocks are too few for {count} devices; name fewer")
    return balanced([0, *accumulate(sizes)], range(1, len(sizes)), len(sizes), count)


def _to_own_device(block: nn.Module, inputs: Any, named: Any) -> Any:
    """The arguments of a block on the device of its weights."""
    weight = next(block.parameters(), None)
    return (inputs, named) if weight is None else _moved((inputs, named), weight.device)


def _forward(detector: Any, images: Tensor) -> list[Tensor]:
    """The forward of a detector whose blocks have places; its maps are where the images are."""
    with _BetweenBlocks(detector.placed_on):
        maps = type(detector).forward(detector, images)
    return [level.to(images.device) for level in maps]


class _BetweenBlocks(TorchFunctionMode):
    """Inside, functions whose arguments lie on several of `devices`, as where maps are joined, get all on the last."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        super().__init__()
        self.devices = devices

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named: Any = kwargs or {}
        found = {leaf.device for leaf in pytree.tree_leaves((args, named)) if isinstance(leaf, Tensor)}
        places = sorted(self.devices.index(device) for device in found if device in self.devices)
        # What is changed in place stays where it is: torch says that it does not fit.
        name = getattr(function, "__name__", "")
        if len(places) > 1 and name != "__setitem__" and (name.endswith("__") or not name.endswith("_")):
            args, named = _moved((args, named), self.devices[places[-1]])
        return function(*args, **named)


def _moved(arguments: Any, device: torch.device) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), arguments)
