"""A parameter that the forward does not use is left alone: in one process on a CPU, as on a GPU, and in several."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from processes import join_team, run_together
from yoloyard import cpu
from yoloyard.common.device import Precision
from yoloyard.common.structures import Batch
from yoloyard.config.settings import OptimizerConfig, TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.models.blocks import Conv
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorFreeHead
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.engine.engine import Engine
from yoloyard.training.state.checkpoint import Progress, read_header, restore, snapshot_of, write
from yoloyard.training.state.randomness import RandomNumbers
from yoloyard.training.strategies.ddp import Ddp

CPU = torch.device("cpu")
PLAIN = Precision("cpu", torch.float32)
USES = [(True, False), (False, False), (False, True), (True, True), (False, False), (False, False)]  # by rank
SAVED_BEFORE = 4


class LeavingOut(Detector):
    """Uses `sometimes` where it is told to, `spare` never."""

    def __init__(self) -> None:
        super().__init__()
        self.p3, self.p4, self.p5 = Conv(3, 8, 9, stride=8), Conv(8, 8, 3, stride=2), Conv(8, 8, 3, stride=2)
        self.sometimes, self.spare = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = AnchorFreeHead((8, 8, 8), 2, (8, 16, 32), depthwise=True)
        self.uses_it = True

    def forward(self, images: Tensor) -> list[Tensor]:
        p3 = self.p3(images)
        if self.uses_it:
            p3 = p3 + self.sometimes(p3)
        p4 = self.p4(p3)
        maps: list[Tensor] = self.head([p3, p4, self.p5(p4)])
        return maps


def batch_of(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([[[4.0, 6, 40, 50]], [[20, 10, 60, 30]]])
    return Batch(pixels, boxes, torch.tensor([[0], [1]]), torch.zeros(2, 1, dtype=torch.bool), [0, 1], [None] * 2)


def rows_of(batch: Batch, rank: int, size: int) -> Batch:
    rows = slice(rank * 2 // size, (rank + 1) * 2 // size)
    return Batch(batch.images[rows], batch.boxes[rows], batch.labels[rows], batch.ignore[rows], [0], [None])


def train_together(trainings: list[dict[str, Any]]) -> list[Any]:
    """The results of `train` for each of `trainings`, one after the other in the same processes."""
    team = join_team(CPU)
    results = [train(**training, team=team) for training in trainings]
    team.leave()
    return results


def train(
    optimizer: str,
    uses: list[tuple[bool, bool]],
    every: int = 1,
    saved: str = "",
    resumes: bool = True,
    team: Team | None = None,
    precision: Precision = PLAIN,
) -> Any:
    """A step for each of `uses`, by rank, an update `every` so many; once saved and restored into a new network.

    Gives weights, averages, the names without a gradient before each update, and in which updates `sometimes` moved.
    """
    team = team or Team()
    unreached: list[list[str]] = []
    moves: list[bool] = []

    class Watched(Engine):
        def update(self) -> tuple[Tensor, Tensor]:
            unreached.append(self.without_gradient())
            sometimes = self.model.get_parameter("sometimes.weight")
            before = sometimes.detach().clone()
            done = super().update()
            moves.append(not torch.equal(before, sometimes))
            return done

    def make() -> tuple[LeavingOut, Engine]:
        torch.manual_seed(0)
        detector = LeavingOut().train()
        strategy = Ddp(detector, team, may_leave_out=True) if team.size > 1 else None
        optimization = OptimizerConfig(
            optimizer=optimizer, lr0=0.01, momentum=0.9, weight_decay=0.1, nbs=2 * every, warmup_epochs=0, ema_ramp=10
        )
        config = TrainConfig(batch=2, optimization=optimization)
        criterion, gains = build_criterion(detector.head, TrainConfig())
        all_points = partial(criterion)  # no points in boxes, whose sums are rounded otherwise
        around = cpu.prepare_training(detector, all_points, precision, team.size)
        engine = Watched(detector, criterion, gains, precision, config, 10**6, strategy, around)
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # so that halves of a batch see what the whole does
        return detector, engine

    detector, engine = make()
    for number, by_rank in enumerate(uses):
        if saved and number == SAVED_BEFORE:
            engine.settle()
            states = team.gather(RandomNumbers(CPU).state_dict())
            with team.on_rank_0() as is_rank_0:
                if is_rank_0:
                    write(snapshot_of({}, engine, Progress(), states), Path(saved))
            if resumes:
                detector, engine = make()
                restore(read_header(Path(saved)), engine, Progress())
        detector.uses_it = by_rank[team.rank]
        engine.step(rows_of(batch_of(number), team.rank, team.size))
    models = (detector, engine.average.model)
    arrays = [{name: value.numpy().copy() for name, value in model.state_dict().items()} for model in models]
    return *arrays, unreached, moves


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_no_decay_and_no_momentum_without_a_gradient(optimizer: str) -> None:
    torch.manual_seed(0)
    before = {name: value.numpy() for name, value in LeavingOut().state_dict().items()}
    some = [(used,) * 2 for used in (False, True, False, False)]
    weights, average, unreached, _ = train(optimizer, some)
    once, *_ = train(optimizer, some[:2])
    for name in ("weight", "bias"):
        assert np.array_equal(weights[f"spare.{name}"], before[f"spare.{name}"])
        assert np.array_equal(average[f"spare.{name}"], before[f"spare.{name}"])
        assert not np.array_equal(once[f"sometimes.{name}"], before[f"sometimes.{name}"])
        assert np.array_equal(weights[f"sometimes.{name}"], once[f"sometimes.{name}"])
    names = ["sometimes.weight", "sometimes.bias", "spare.weight", "spare.bias"]
    assert unreached == [names, [], [], []]
    there, _, same, _ = train(optimizer, some, precision=Precision("cpu", torch.float32, "accelerator"))
    assert same == unreached
    for name, value in weights.items():
        assert np.allclose(there[name], value, rtol=1e-4, atol=1e-6), name


def test_accumulated_gradients_stay_where_the_last_batch_does_not_use_them() -> None:
    some = [(True,) * 2, (False,) * 2]
    for order in (some, some[::-1]):
        _, _, unreached, moves = train("SGD", order, every=2)
        assert unreached == [["spare.weight", "spare.bias"]]
        assert moves == [True]


MOVES = {1: [True, False, True, True, False, False], 3: [True, True]}  # by batches an update: moves `sometimes`?


@pytest.mark.slow
def test_two_processes_leave_alone_what_none_of_them_uses(tmp_path: Path) -> None:
    """They train as one, and a run that is resumed, also in the middle of an update, ends as the one that went on."""
    torch.manual_seed(0)
    before = {name: value.numpy() for name, value in LeavingOut().state_dict().items()}
    alike: dict[str, Any] = {"optimizer": "SGD", "uses": [(True,) * 2, (False,) * 2, (True,) * 2]}
    trainings = [
        {
            "optimizer": "AdamW",
            "uses": USES,
            "every": every,
            "saved": str(tmp_path / f"{every}-{resumes}"),
            "resumes": resumes,
        }
        for every in MOVES
        for resumes in (False, True)
    ]
    ranks = run_together(2, train_together, [alike, *trainings])

    alone, *_ = train(**alike)
    for weights, *_ in (rank[0] for rank in ranks):
        for name, value in alone.items():
            assert np.allclose(weights[name], value, rtol=1e-3, atol=1e-6), name
    for number, every in enumerate(MOVES):
        went_on, resumed = (number * 2 + 1 + resumes for resumes in (False, True))
        expected = ranks[0][went_on][0]
        for weights, average, unreached, moved in (rank[place] for rank in ranks for place in (went_on, resumed)):
            assert np.array_equal(weights["spare.weight"], before["spare.weight"])
            assert np.array_equal(average["spare.weight"], before["spare.weight"])
            assert unreached[0] == ["spare.weight", "spare.bias"]
            assert moved == MOVES[every]
            for name, value in expected.items():
                assert np.array_equal(weights[name], value), name
