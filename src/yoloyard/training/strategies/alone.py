"""What a strategy is, and that of one process alone."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from yoloyard.common.structures import Batch
from yoloyard.models.detector import Detector
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.engine.backward import BackwardPass

if TYPE_CHECKING:
    from yoloyard.training.engine.engine import Engine


class Strategy:
    """How a step is shared. This one: one process with one device, which shares nothing. Others define what differs.

    `network` is what the step calls: the model itself, or compiled, or sharing its work with other processes. `device`
    has the images, the loss and what is measured; parameters may lie elsewhere.
    """

    pieces: Sequence[nn.Module] = ()  # what --compile compiles one by one; empty: the network
    no_parts = ""  # why a batch can't be computed in parts where memory is short; empty: it can

    def __init__(self, model: Detector, team: Team | None = None, network: nn.Module | None = None) -> None:
        self.model, self.team = model, team or Team()
        self.network: nn.Module = model if network is None else network
        self.device = next(model.parameters()).device

    @property
    def share(self) -> tuple[int, int]:
        """Which share of each batch this process trains on, from 0, and how many shares there are."""
        return self.team.rank, self.team.size

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The `batches` of this process's share, which it may get from another process instead."""
        return batches

    def backward(self, engine: "Engine", batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Add the gradients of this process's share of a batch to the parameters.

        Returns this process's losses (parts,), whose sum over processes is that of the batch, and the `label_ratio` ()
        if it was due.
        """
        work = BackwardPass(engine, batch)
        return work.run(), work.label_ratio

    def exchanging(self, is_due: bool) -> AbstractContextManager[None]:
        """Inside, a backward pass makes gradients their mean over all processes if `is_due`; else each adds its own."""
        return nullcontext()

    def add_gradients(
        self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], is_due: bool
    ) -> None:
        """Add `gradients` to those of the `parameters` as a backward pass does that computes them.

        If `is_due`, the sums become their mean over all processes, among which others may make a backward pass itself.
        None stands for a parameter that is not reached.
        """
        reached = [pair for pair in zip(parameters, gradients, strict=True) if pair[1] is not None]
        roots = [parameter.view_as(parameter) for parameter, _ in reached]
        self.prepare_for_backward(roots, is_due)
        if roots:
            torch.autograd.backward(roots, [gradient for _, gradient in reached])

    def prepare_for_backward(self, roots: list[Tensor], is_due: bool) -> None:
        """Make ready for a backward pass from `roots` that no forward has prepared."""

    def unscale(
        self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
    ) -> None:
        """Divide the gradients of `parameters` by the scale of the loss; `scaler` hears in all whether one is bad."""
        scaler.unscale_(optimizer)

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """The norm () of `tensors`, weights or gradients, taken as a single one of the whole model."""
        return nn.utils.get_total_norm(tensors)

    def in_all(self, names: list[str]) -> list[str]:
        """Those of this process's `names` that all processes have; on rank 0."""
        return names

    def settle(self, engine: "Engine") -> None:
        """Before a checkpoint: make gradients, and what else differs between processes, equal in all."""

    def even_out(self, tensors: list[Tensor]) -> None:
        """Give `tensors`, which each share has gone on with by itself, their mean over all shares."""
        if self.share[1] > 1:
            self.team.even_out(tensors)

    def whole(self, tensor: Tensor) -> Tensor:
        """The whole of a weight, gradient, average or optimizer's value that may lie here in part."""
        return tensor

    def part(self, parameter: Tensor, whole: Tensor) -> Tensor:
        """What lies here of `whole`, a value for a parameter. Raises ValueError for another shape."""
        if whole.shape != parameter.shape:
            shapes = f"{tuple(whole.shape)} does not fit a parameter of {tuple(parameter.shape)}"
            raise ValueError(f"a tensor of shape {shapes}")
        return torch.empty_like(parameter, requires_grad=False).copy_(whole)  # in its layout, as fused optimizers want

    def parts(self, own: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What lies here of `whole`, values by the names of `own`, to be copied. Raises ValueError for other shapes."""
        return whole

    def here(self, tensors: list[Tensor]) -> list[Tensor]:
        """What lies here of `tensors`, in the same memory."""
        return tensors

    def copy(self) -> Detector:
        """A copy of the model; without weights where they are sharded, whose averages are, too."""
        return copy.deepcopy(self.model)

    def whole_model(self, model: Detector, state: Mapping[str, Tensor]) -> Detector:
        """`model`, or where it lies here in part, a detector of this process alone with all of its `state`."""
        return model
