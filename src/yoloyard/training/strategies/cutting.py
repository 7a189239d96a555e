"""A detector's forward cut into stages of about equal cost, from outside: models know nothing of it.

torch.fx records one forward as a list of steps, each of the detector's `blocks` as one. A stage is a stretch of it.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from yoloyard.common.device import Precision
from yoloyard.common.errors import UsageError
from yoloyard.models.detector import Detector


@dataclass(frozen=True)
class Stage:
    """A stretch of a forward between the blocks `first` and `last`, which has a `share` of the cost of all.

    `module` takes the images, or what the stage before gives; it gives a tuple, or at the end the detector's maps.
    `takes` and `gives` are examples of these values, without numbers. Those between stages are float tensors, or lists
    and tuples of them.
    """

    module: fx.GraphModule
    takes: tuple[Any, ...]
    gives: Any
    first: str
    last: str
    share: float


FLOAT32 = Precision("cpu", torch.float32)


def cut(detector: Detector, count: int, shape: Sequence[int], precision: Precision = FLOAT32) -> list[Stage]:
    """`detector` as `count` stages, whose modules share its parameters; `shape` (B, channels, H, W) of float32 images.

    The most expensive stage is as cheap as it can be, by arithmetic and by bytes that wait for the backward pass.
    Raises UsageError where the network can't be cut.
    """
    graph, run = _measured(detector, shape, precision)
    nodes = list(graph.nodes)
    costs = [0.0, *accumulate(run.costs[node] for node in nodes)]
    crossing = [_crossing(nodes, place) for place in range(len(nodes) + 1)]
    behind_blocks = [place for place, node in enumerate(nodes, start=1) if node.op == "call_module"][:-1]
    sent = {place: tree_leaves([run.results[each] for each in crossing[place]]) for place in behind_blocks}
    is_float = lambda value: isinstance(value, Tensor) and value.is_floating_point()  # noqa: E731
    places = [place for place, values in sent.items() if all(map(is_float, values))]
    if len(places) < count - 1:
        raise UsageError(
            f"--strategy pipeline can cut this network behind {len(places)} of its `blocks`, which is too few for "
            f"{count} processes"
        )
    bounds = [0, *balanced(costs, places, len(nodes), count)]
    stages = []
    for begin, end in pairwise(bounds):
        blocks = [node.target for node in nodes[begin:end] if node.op == "call_module"]
        takes, gives = crossing[begin] if begin else nodes[:1], crossing[end]
        module = _stretch(detector, nodes[begin or 1 : end], takes, gives)
        values = tuple(run.results[node] for node in takes), tuple(run.results[node] for node in gives)
        stages.append(Stage(module, *values, blocks[0], blocks[-1], (costs[end] - costs[begin]) / costs[-1]))
    _check_shared(stages)
    return stages


class _Blocks(fx.Tracer):
    """Records each of `blocks` as one step."""

    blocks: Sequence[nn.Module | None]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return any(m is block for block in self.blocks) or super().is_leaf_module(m, module_qualified_name)


class _Measured(fx.Interpreter):
    """Runs a graph and notes of each step its result, operations, and bytes that a backward pass wants."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.results: dict[fx.Node, Any] = {}
        self.flops: dict[fx.Node, int] = {}
        self.bytes: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        kept: list[int] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor.nbytes)
            return tensor

        with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
            self.results[n] = super().run_node(n)
        self.flops[n], self.bytes[n] = counter.get_total_flops(), sum(kept)
        return self.results[n]

    @property
    def costs(self) -> dict[fx.Node, float]:
        """Of each step: the mean of its share of the operations and of the bytes."""
        flops, kept = max(sum(self.flops.values()), 1), max(sum(self.bytes.values()), 1)
        return {node: (self.flops[node] / flops + self.bytes[node] / kept) / 2 for node in self.results}


def _measured(detector: Detector, shape: Sequence[int], precision: Precision) -> tuple[fx.Graph, _Measured]:
    """The steps of a forward, and what they cost; nothing is computed, and the detector stays as it is."""
    tracer = _Blocks()
    tracer.blocks = detector.blocks
    try:
        graph = tracer.trace(detector)
        run = _Measured(fx.GraphModule(copy.deepcopy(detector).eval(), graph))
        device = next(detector.parameters()).device
        with FakeTensorMode(allow_non_fake_inputs=True), precision.autocast():
            run.run(torch.empty(tuple(shape), device=device).to(memory_format=torch.channels_last))
    except Exception as error:  # whatever the user's forward raises when it meets values without numbers
        said = " ".join(str(error).split())
        raise UsageError(
            f"--strategy pipeline can't cut this network: its forward depends on what it meets ({said:.200}); "
            "put that into one of its `blocks`, or take another --strategy"
        ) from error
    return graph, run


def _crossing(nodes: Sequence[fx.Node], place: int) -> list[fx.Node]:
    """What is made before `place` and used from there on."""
    later = set(nodes[place:])
    return [node for node in nodes[:place] if not later.isdisjoint(node.users)]


def balanced(costs: Sequence[float], places: Sequence[int], end: int, count: int) -> list[int]:
    """Ends of `count` stretches up to `end`, at `places`, whose greatest difference of `costs` is the smallest."""

    @cache
    def best(begin: int, stretches: int) -> tuple[float, list[int]]:
        if stretches == 1:
            return costs[end] - costs[begin], [end]
        ways = [(place, *best(place, stretches - 1)) for place in places if place > begin]
        tried = [(max(costs[place] - costs[begin], most), [place, *ends]) for place, most, ends in ways]
        return min(tried, default=(math.inf, []))

    return best(0, count)[1]


def _stretch(
    detector: Detector, nodes: Iterable[fx.Node], takes: Iterable[fx.Node], gives: Iterable[fx.Node]
) -> fx.GraphModule:
    """A module that computes `nodes` alone."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in takes}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    if not any(node.op == "output" for node in copies):
        graph.output(tuple(copies[node] for node in gives))
    return fx.GraphModule(detector, graph)


def _check_shared(stages: Sequence[Stage]) -> None:
    """Raise UsageError where two stages have the same parameter: each would know a part of its gradient."""
    owners: dict[nn.Parameter, int] = {}
    for number, stage in enumerate(stages):
        for name, parameter in stage.module.named_parameters():
            if owners.setdefault(parameter, number) != number:
                raise UsageError(f"--strategy pipeline can't cut this network: two stages share the parameter {name}")
