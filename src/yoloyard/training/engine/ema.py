"""What follows the weights of a model: their moving average, and the running statistics of BatchNorm."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from yoloyard.training.engine.optimizers.plain import is_sharded

if TYPE_CHECKING:
    from yoloyard.training.strategies.alone import Strategy

DECAY = 0.9999


class ExponentialMovingAverage:
    """A copy of the model that follows it slowly: ema = d * ema + (1 - d) * model, d = 0.9999 * (1 - exp(-u / ramp)).

    Every floating-point entry is averaged, BatchNorm's statistics too. All arithmetic stays on the device. Of weights
    that are sharded so are the averages; `model`, the copy, has none of them then.
    Source: Polyak & Juditsky (1992); the ramp is that of the published YOLO recipes.
    """

    def __init__(self, strategy: "Strategy", ramp: float) -> None:
        model, self._strategy, self.ramp = strategy.model, strategy, ramp
        self.model = strategy.copy().eval().requires_grad_(False)
        state = model.state_dict(keep_vars=True)
        self.updates = torch.zeros((), device=strategy.device)
        # a tensor that several modules share has several names in the state, but is averaged once
        clones = {value: value.detach().clone() for value in state.values() if is_sharded(value)}
        self._shards = {name: clones[value] for name, value in state.items() if value in clones}
        once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
        # changed in place alone, so the lists, whose making takes longer than the arithmetic, are made once
        self._lists: dict[torch.device, tuple[list[Tensor], list[Tensor]]] = {}
        for name, average in self.values.items():
            if name in once and average.is_floating_point():
                values, averages = self._lists.setdefault(average.device, ([], []))
                values.append(state[name])
                averages.append(average)

    @property
    def values(self) -> dict[str, Tensor]:
        """The averages by their names in the model."""
        return self.model.state_dict() | self._shards

    @torch.no_grad()
    def update(self, found_inf: Tensor) -> None:
        """Follow the model that this was made from by one step; not at all where `found_inf` () is 1."""
        self.updates += 1 - found_inf
        decay = DECAY * (1 - torch.exp(-self.updates / self.ramp))
        share = (1 - decay) * (1 - found_inf)
        for device, lists in self._lists.items():
            values, averages = map(self._strategy.here, lists)
            difference = torch._foreach_sub(values, averages)
            torch._foreach_mul_(difference, share.to(device))
            torch._foreach_add_(averages, difference)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by their names in the model, and the number of updates as `ema.updates`."""
        return {**self.values, "ema.updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave. Raises KeyError or RuntimeError if it is of another model."""
        self.updates.copy_(state["ema.updates"])
        for name, shard in self._shards.items():
            shard.copy_(self._strategy.part(shard, state[name]))
        own = self.model.state_dict()
        rest = {name: own[name] if name in self._shards else value for name, value in state.items()}
        del rest["ema.updates"]
        self.model.load_state_dict(rest)


class Statistics:
    """The running means and variances of a model, and `good`: those after the last good update, all in one tensor.

    They may lie on several devices; `good` is on `device`.
    """

    def __init__(self, model: nn.Module, average: nn.Module, device: torch.device) -> None:
        self.of_model, self._averages, self._device = _statistics_of(model), _statistics_of(average), device
        self.good = self._flat()

    @torch.no_grad()
    def put_back(self, found_inf: Tensor) -> None:
        """After an update: back to the good ones where `found_inf` () is 1, else the present ones become the good."""
        if self.of_model:
            self.good = torch.where(found_inf > 0, self.good, self._flat())
            torch._foreach_copy_(self.of_model, split_like(self.good, self.of_model))

    @property
    def all(self) -> list[Tensor]:
        """Those of the model, of its average, and the good ones."""
        return [*self.of_model, *self._averages, self.good] if self.of_model else []

    def _flat(self) -> Tensor:
        flat = [statistic.detach().flatten().to(self._device) for statistic in self.of_model]
        return torch.cat(flat) if flat else torch.zeros(0)


def split_like(flat: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """The parts of `flat` (n,) in the shapes of `tensors`, which have n numbers together."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _statistics_of(model: nn.Module) -> list[Tensor]:
    return [
        buffer
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
