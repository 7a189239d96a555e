"""`--compile`: what the step calls is compiled; the run never fails for it. Backends that need no compiler are used."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from on_device import some_batch
from processes import gradients_of, join_team, run_together
from yoloyard.common.device import Precision
from yoloyard.common.log import shown_lines
from yoloyard.config.settings import OptimizerConfig, TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorFreeHead
from yoloyard.training.engine.compilation import compile_network
from yoloyard.training.engine.engine import Engine
from yoloyard.training.strategies.alone import Strategy
from yoloyard.training.strategies.ddp import Ddp

FLOAT32 = Precision("cpu", torch.float32)
SHAPE = (2, 3, 64, 64)


class Small(Detector):
    """Three strides of one convolution and a normalisation each."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 8, 8)
        self.stem = nn.Conv2d(3, 3, 5, stride=4, padding=2)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after))
            for before, after in itertools.pairwise(widths)
        )
        self.head = AnchorFreeHead(widths[1:], 3, (8, 16, 32), depthwise=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.head(maps)


class Loud(Small):
    """Looks at a number and prints, which no compiler can take in one piece."""

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = super().forward(images)
        if maps[0].mean() > 1e9:
            print("large")
        return maps


def compiled(detector: Detector, lines: list[str], backend: str = "aot_eager", dynamic: bool = False) -> nn.Module:
    torch._dynamo.reset()
    with shown_lines(lines.append):
        return compile_network(detector.train(), detector, SHAPE, FLOAT32, dynamic, backend)


def test_the_compiled_network_computes_the_same_and_trying_it_leaves_no_trace() -> None:
    lines: list[str] = []
    detector = Small()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    random = torch.get_rng_state()
    network = compiled(detector, lines)
    assert network is not detector
    assert [line[: line.index(" in ")] for line in lines] == ["compile: the network was compiled"]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in detector.parameters())
    assert detector.state_dict().keys() == before.keys()  # names are those of the plain network
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name]), name
    images = torch.rand(SHAPE)
    for found, expected in zip(network(images), detector(images), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_engine_trains_a_compiled_network_like_the_plain_one() -> None:
    losses = []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        detector = Small().train()
        config = TrainConfig(batch=2, imgsz=64, optimization=OptimizerConfig(optimizer="SGD", nbs=2))
        criterion, gains = build_criterion(detector.head, config)
        network = compiled(detector, []) if is_compiled else None
        engine = Engine(detector, criterion, gains, FLOAT32, config, 10, Strategy(detector, network=network))
        losses.append([engine.step(some_batch(seed=seed)).losses for seed in range(3)])
    for plain, other in zip(*losses, strict=True):
        torch.testing.assert_close(plain, other)


@pytest.mark.slow
def test_a_network_that_looks_at_numbers_is_compiled_in_several_pieces() -> None:
    lines: list[str] = []
    network = compiled(Loud(), lines)
    assert len(lines) == 2
    assert lines[0].startswith("compile: the network can't be compiled in one piece, so in several: Unsupported:")
    assert "was compiled in" in lines[1]
    network(torch.rand(SHAPE))[0].sum().backward()


@pytest.mark.slow
def test_one_program_serves_all_sizes_where_they_vary() -> None:
    programs = []

    def counting(graph: torch.fx.GraphModule, inputs: object) -> object:
        programs.append(graph)
        return graph.forward

    lines: list[str] = []
    network = compiled(Small(), lines, backend=counting, dynamic=True)  # type: ignore[arg-type]
    for side in (96, 128, 160):
        network(torch.rand(2, 3, side, side).to(memory_format=torch.channels_last))
    assert len(programs) == 1


def test_without_a_working_compiler_training_goes_on_with_the_plain_network() -> None:
    def broken(graph: torch.fx.GraphModule, inputs: object) -> object:
        raise RuntimeError("no C++ compiler was found\nand many lines follow")

    lines: list[str] = []
    detector = Small()
    assert compiled(detector, lines, backend=broken) is detector  # type: ignore[arg-type]
    assert len(lines) == 1
    assert lines[0].startswith("compile: this does not work here, training goes on without it: BackendCompilerFailed:")
    assert "no C++ compiler was found" in lines[0]
    assert "\n" not in lines[0]


def three_batches(detector: Small, strategy: Strategy, rank: int) -> list[dict[str, np.ndarray]]:
    """The gradients after each of three batches, of which the last one ends an update."""
    images = torch.rand((3, 2, *SHAPE), generator=torch.Generator().manual_seed(1))
    found = []
    for number in range(3):
        with strategy.exchanging(is_due=number == 2):
            sum(level.sum() for level in strategy.network(images[number, rank])).backward()
        found.append(gradients_of(detector))
    return found


def compiled_in_a_team() -> tuple[list[dict[str, np.ndarray]], list[str]]:
    """The same in one of several processes, compiled; and what was said."""
    lines: list[str] = []
    team = join_team(torch.device("cpu"))
    torch.manual_seed(0)
    detector = Small().train()
    strategy = Ddp(detector, team)
    shared = strategy.network
    with shown_lines(lines.append):
        strategy.network = compile_network(shared, detector, SHAPE, FLOAT32, backend="aot_eager")
    assert strategy.network is not shared, lines
    found = three_batches(detector, strategy, team.rank)
    team.leave()
    return found, lines


@pytest.mark.slow
def test_what_shares_gradients_among_processes_is_compiled_with_the_network() -> None:
    results = run_together(2, compiled_in_a_team)
    torch.manual_seed(0)
    detector = Small().train()
    alone = []
    for rank in range(2):
        detector.zero_grad()
        alone.append(three_batches(detector, Strategy(detector), rank))
    for rank, (found, lines) in enumerate(results):
        assert len(lines) == 1
        for number in range(2):  # each its own
            assert_gradients_close(found[number], alone[rank][number])
        assert_gradients_close(found[2], {name: (alone[0][2][name] + alone[1][2][name]) / 2 for name in alone[0][2]})


def assert_gradients_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-5, atol=1e-6 * largest, err_msg=name)
