"""The moving average of a model. Source: Polyak & Juditsky (1992); its ramp is that of the published YOLO recipes."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from yoloyard.models.detector import Detector

DECAY = 0.9999


class ExponentialMovingAverage:
    """A copy of the model that follows it slowly: ema = d * ema + (1 - d) * model, d = 0.9999 * (1 - exp(-u / ramp)).

    Every floating-point entry is averaged, BatchNorm's statistics too. All arithmetic stays on the device.
    """

    def __init__(self, model: Detector, ramp: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        state = model.state_dict()
        self.ramp = ramp
        self.updates = torch.zeros((), device=next(iter(state.values())).device)
        # a tensor that several modules share has several names in the state, but is averaged once
        once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
        names = [name for name, value in state.items() if name in once and value.is_floating_point()]
        # changed in place alone, so the lists, whose making takes longer than the arithmetic, are made once
        averages = self.model.state_dict()
        self._values, self._averages = [state[name] for name in names], [averages[name] for name in names]

    @torch.no_grad()
    def update(self, found_inf: Tensor) -> None:
        """Follow the model that this was made from by one step; not at all where `found_inf` () is 1."""
        self.updates += 1 - found_inf
        decay = DECAY * (1 - torch.exp(-self.updates / self.ramp))
        difference = torch._foreach_sub(self._values, self._averages)
        torch._foreach_mul_(difference, (1 - decay) * (1 - found_inf))
        torch._foreach_add_(self._averages, difference)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by their names in the model, and the number of updates as `ema.updates`."""
        return {**self.model.state_dict(), "ema.updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave. Raises KeyError or RuntimeError if it is of another model."""
        self.updates.copy_(state["ema.updates"])
        self.model.load_state_dict({name: value for name, value in state.items() if name != "ema.updates"})
