"""A process that exhausts its memory makes smaller parts alone: the others notice nothing, and all end as one would."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from test_out_of_memory import block_of, pixels_at, training_of

from exhausted import limit
from on_device import some_batch
from processes import run_together
from yoloyard.training.distributed.collectives import Team, join_team
from yoloyard.training.distributed.ddp import parallelize
from yoloyard.training.engine.backward import split
from yoloyard.training.engine.engine import Engine

CPU = torch.device("cpu")
STEPS, IMAGES, ACCUMULATE = 6, 4, 2  # images of all processes together


class Case(NamedTuple):
    """In which process and step the memory ends, and in which part of it. Updates come with the steps 1, 3 and 5."""

    model: str = "yolo11n"
    where: str = "forward"
    rank: int = 1
    step: int = 0
    may_leave_out: bool = False


CASES = (
    Case(),
    Case(step=1, may_leave_out=True),
    Case(where="backward", rank=0, step=1),  # the first exchange of gradients, after which torch arranges them again
    Case(where="backward", step=3),
    Case(where="backward", step=3, may_leave_out=True),
    Case(where="backward", step=2),
    Case(model="yolov5n", step=1),
    Case(model="yolov5n", where="backward", step=1),
)


def train(case: Case, team: Team) -> dict[str, Any]:
    """Weights and losses after the steps, and the parts that this process came to."""
    training = training_of(case.model, ACCUMULATE * IMAGES // 2)
    own = training.engine
    network = parallelize(training.detector, CPU, team, case.may_leave_out)
    parts = training.detector, own.criterion, own.gains, own.precision, own.config
    engine = Engine(*parts, 10**6, team, network)
    handle, losses = None, []
    block = block_of(training, case.where)
    for step in range(STEPS):
        if step == case.step and team.rank == case.rank and team.size > 1:
            handle = limit(block, pixels_at(training, block), case.where)
        share = split(some_batch(IMAGES, seed=step), IMAGES // team.size)[team.rank]
        losses.append(engine.step(share).losses.numpy())
        if handle:
            handle.remove()
    found = {
        name: value.numpy() for name, value in training.detector.state_dict().items() if value.dtype.is_floating_point
    }
    alone = engine.micro_batch
    news = engine.agree_on_micro_batch()
    return {"weights": found, "losses": np.stack(losses), "alone": alone, "agreed": engine.micro_batch, "news": news}


def train_all(cases: tuple[Case, ...]) -> list[dict[str, Any]]:
    team = join_team(CPU)
    found = [train(case, team) for case in cases]
    team.leave()
    return found


@pytest.mark.parametrize("cases", [CASES[:1] + CASES[3:4], pytest.param(CASES, marks=pytest.mark.slow)], ids=len)
def test_each_process_makes_its_own_parts_and_keeps_to_the_exchanges(cases: tuple[Case, ...]) -> None:
    together = run_together(2, train_all, cases)
    alone = {model: train(Case(model), Team()) for model in {"yolo11n", *(case.model for case in cases)}}
    start = training_of().detector.state_dict()
    way = [np.abs(value - start[name].numpy()).max() for name, value in alone["yolo11n"]["weights"].items()]
    assert max(way) > 0.01  # far more than the tolerance below
    for case, *results in zip(cases, *together, strict=True):
        expected = alone[case.model]
        for rank, found in enumerate(results):
            assert np.allclose(found["losses"], expected["losses"], rtol=1e-3), case
            for name, value in expected["weights"].items():
                assert np.allclose(found["weights"][name], value, rtol=1e-3, atol=1e-5), (case, name)
            assert found["alone"] == (1 if rank == case.rank else 0), case
            assert found["agreed"] == found["news"] == 1, case
        for name, value in results[0]["weights"].items():
            assert np.array_equal(value, results[1]["weights"][name]), (case, name)
