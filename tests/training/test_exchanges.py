"""What a step exchanges among processes: no more than it must, and gradients while others are still computed."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from on_device import Training, some_batch
from processes import gradients_of, join_team, run_together
from yoloyard.common.device import Precision
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.engine.engine import Engine
from yoloyard.training.engine.optimizers.plain import is_sharded
from yoloyard.training.strategies.alone import Strategy
from yoloyard.training.strategies.ddp import Ddp
from yoloyard.training.strategies.fsdp import Fsdp

CPU = torch.device("cpu")
STEPS = 8  # every second one ends an update; in the first ones torch arranges what it exchanges
WITHOUT_UPDATE, WITH_UPDATE, IN_PARTS = 4, 5, 7  # steps that are looked at; in the last one images are computed singly
NORMS, NORM, LOSSES_AND_FLAGS = 4 * 3, 4 * 1, 4 * (3 + 2)  # bytes
CONVOLUTION = "convolution_backward"


class Exchanges(TorchDispatchMode):
    """While entered, notes in their order the exchanges, with their bytes, and the backward passes of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "c10d":
            tensors = [leaf for leaf in pytree.tree_leaves(args[0]) if isinstance(leaf, Tensor)]
            self.events.append((name, sum(tensor.nbytes for tensor in tensors)))
        elif name == CONVOLUTION:
            self.events.append((name, 0))
        return func(*args, **(kwargs or {}))


class Found(NamedTuple):
    """Of one process: the events of each step, and all gradients of each update."""

    events: list[list[tuple[str, int]]]
    gradients: list[dict[str, np.ndarray]]
    sharded: int  # bytes of the trainable parameters, all processes together
    whole: int  # of those that each process has
    pieces: int  # that are sharded by themselves

    def sizes(self, step: int, name: str = "allreduce_") -> list[int]:
        """Bytes of the exchanges of a kind in a step."""
        return [size for kind, size in self.events[step] if kind == name]

    def computed_later(self, step: int, exchange: int) -> float:
        """The share of the convolutions whose backward pass begins after this exchange of a step, counted from 0."""
        names = [name for name, _ in self.events[step]]
        place = [position for position, name in enumerate(names) if name != CONVOLUTION][exchange]
        return names[place:].count(CONVOLUTION) / names.count(CONVOLUTION)


def exchanged(kinds: tuple[str, ...]) -> dict[str, Found]:
    team = join_team(CPU)
    found = {kind: train(kind, team) for kind in kinds}
    team.leave()
    return found


def train(kind: str, team: Team) -> Found:
    training = Training(CPU, accumulate=2)
    model, own = training.detector, training.engine
    strategy: Strategy
    if kind == "fsdp":
        strategy = Fsdp(model, team, Precision("cpu", torch.float32))
    else:
        strategy = Ddp(model, team, compresses=kind == "compressed")
    engine = Engine(model, own.criterion, own.gains, own.precision, own.config, 10**6, strategy)
    events, gradients = [], []
    for step in range(STEPS - (kind == "fsdp")):  # which allows no parts
        engine.micro_batch = 1 if step == IN_PARTS else 2
        with Exchanges() as exchanges:
            engine.backward(some_batch(4, seed=step).rows(slice(2 * team.rank, 2 * team.rank + 2)))
        events.append(exchanges.events)
        engine.number += 1
        if step % 2:
            gradients += [gradients_of(model)] if kind != "fsdp" else []
            with exchanges:
                engine.update()
            engine.last_update = step
    sizes = {each: 4 * each.numel() for each in engine.parameters}
    sharded = sum(size for each, size in sizes.items() if is_sharded(each))
    pieces = len(strategy.pieces) if isinstance(strategy, Fsdp) else 0
    return Found(events, gradients, sharded, sum(sizes.values()) - sharded, pieces)


@pytest.fixture(scope="module")
def results() -> dict[str, Found]:
    """What one of two processes found."""
    found: dict[str, Found] = run_together(2, exchanged, ("ddp", "compressed", "fsdp"))[0]
    return found


@pytest.mark.slow
def test_nothing_is_exchanged_twice_and_gradients_while_others_are_computed(results: dict[str, Found]) -> None:
    for name, width in (("ddp", 4), ("compressed", 2)):
        found = results[name]
        for step in (WITH_UPDATE, IN_PARTS):
            norms, *buckets, rest = found.sizes(step)
            assert (norms, rest) == (NORMS, LOSSES_AND_FLAGS)
            assert sum(buckets) == found.whole // 4 * width  # each gradient once
            assert len(buckets) == 2  # torch's first one of 1 MB, then up to 25 MB each
            assert len(found.sizes(step)) == len([name for name, _ in found.events[step] if name != CONVOLUTION])
        assert found.computed_later(WITH_UPDATE, exchange=1) > 0.7
        assert found.sizes(WITHOUT_UPDATE) == [NORMS, LOSSES_AND_FLAGS]

    found = results["fsdp"]
    for step in (WITHOUT_UPDATE, WITH_UPDATE):
        # Weights are gathered for the forward and once more for the backward pass; gradients are added up in shards.
        gathered, scattered = found.sizes(step, "_allgather_base_"), found.sizes(step, "_reduce_scatter_base_")
        assert (len(gathered), len(scattered)) == (2 * found.pieces, found.pieces)
        assert sum(gathered) / 2 == pytest.approx(found.sharded, rel=1e-3)  # odd numbers of rows are padded
        assert sum(scattered) * 2 == pytest.approx(found.sharded, rel=1e-3)
    assert found.sizes(WITHOUT_UPDATE) == [NORMS, LOSSES_AND_FLAGS]
    assert found.sizes(WITH_UPDATE) == [NORMS, found.whole, LOSSES_AND_FLAGS, NORM]
    first = [name for name, _ in found.events[WITH_UPDATE] if name != CONVOLUTION].index("_reduce_scatter_base_")
    assert found.computed_later(WITH_UPDATE, exchange=first) > 0.7


@pytest.mark.slow
def test_compressed_gradients_are_rounded_to_bfloat16_and_no_more(results: dict[str, Found]) -> None:
    plain, rounded = results["ddp"].gradients[0], results["compressed"].gradients[0]  # of the same weights
    assert plain.keys() == rounded.keys()
    errors = [np.abs(rounded[name] - value).max() / np.abs(value).max() for name, value in plain.items() if value.any()]
    assert max(errors) < 2**-7  # of shares of two batches, and of their sum, each by 2**-9 of itself at most
    assert np.median(errors) > 2**-12
