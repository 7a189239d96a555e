"""BatchNorm's running statistics: as they were before a bad step, and equal in all processes."""

import torch
from torch import Tensor, nn

from yoloyard.training.distributed.collectives import Team


class Statistics:
    """The running means and variances of a model, and `good`: those after the last good update, all in one tensor."""

    def __init__(self, model: nn.Module, average: nn.Module) -> None:
        self._own, self._averages = _statistics_of(model), _statistics_of(average)
        self.good = self._flat()

    @torch.no_grad()
    def put_back(self, found_inf: Tensor) -> None:
        """After an update: back to the good ones where `found_inf` () is 1, else the present ones become the good."""
        if self._own:
            self.good = torch.where(found_inf > 0, self.good, self._flat())
            torch._foreach_copy_(self._own, split_like(self.good, self._own))

    @torch.no_grad()
    def even_out(self, team: Team) -> None:
        """Give all processes the mean of their statistics, in the model and in its average."""
        even_out([*self._own, *self._averages, self.good] if self._own else [], team)

    def _flat(self) -> Tensor:
        return torch.cat([statistic.detach().flatten() for statistic in self._own]) if self._own else torch.zeros(0)


def even_out(tensors: list[Tensor], team: Team) -> None:
    """Give `tensors` the mean that they have over all processes, in one exchange."""
    if team.size > 1 and tensors:
        means = team.all_reduce(torch.cat([tensor.flatten() for tensor in tensors])) / team.size
        torch._foreach_copy_(tensors, split_like(means, tensors))


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
