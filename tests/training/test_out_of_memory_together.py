"""A process that exhausts its memory makes smaller parts alone: the others notice nothing, and all end as one would."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from test_out_of_memory import block_of, pixels_at, training_of

from exhausted import limit
from on_device import some_batch
from processes import join_team, run_together
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.engine.engine import Engine
from yoloyard.training.strategies.ddp import Ddp

CPU = torch.device("cpu")
STEPS, IMAGES, ACCUMULATE = 4, 4, 2  # images of all processes together


class Case(NamedTuple):
    """In which process and step the memory ends, and in which part of it. Updates come with the steps 1 and 3."""

    model: str = "yolo11n"
    where: str = "forward"
    rank: int = 1
    step: int = 0
    may_leave_out: bool = False
    images: int = 1  # that fit


CASES = (
    Case(where="backward", rank=0, step=1),  # the first exchange of gradients, after which torch arranges them again
    Case(where="backward", step=3, images=0),
    Case(step=2, images=0),
    Case(),
    Case(step=1, may_leave_out=True),
    Case(where="backward", step=3, may_leave_out=True),
    Case(where="backward", step=2),
    Case(model="yolov5n", step=1),
    Case(model="yolov5n", where="backward", step=1, rank=0),
    Case(model="yolov5n", where="backward", step=3, images=0),
)


def train(case: Case, team: Team) -> dict[str, Any]:
    """Weights, losses and flags of the steps, and the images at once that this process came to."""
    training = training_of(case.model, ACCUMULATE * IMAGES // 2)
    own = training.engine
    strategy = Ddp(training.detector, team, case.may_leave_out) if team.size > 1 else None
    parts = training.detector, own.criterion, own.gains, own.precision, own.config
    engine = Engine(*parts, 10**6, strategy)
    handle, losses, asked, skipped = None, [], [], []
    block = block_of(training, case.where)
    for step in range(STEPS):
        if step == case.step and team.rank == case.rank and team.size > 1:
            handle = limit(block, case.images * pixels_at(training, block), case.where)
        rows = slice(team.rank * IMAGES // team.size, (team.rank + 1) * IMAGES // team.size)
        report = engine.step(some_batch(IMAGES, seed=step).rows(rows))
        losses.append(report.losses.numpy())
        asked.append(report.asked.tolist())
        skipped.append(bool(report.found_inf))
        if handle:
            handle.remove()
    state = training.detector.state_dict()
    found = {name: value.numpy() for name, value in state.items() if value.dtype.is_floating_point}
    alone = engine.micro_batch
    news = engine.agree_on_micro_batch()
    flags = {"asked": asked, "skipped": skipped, "exhausted": engine.exhausted}
    return {"weights": found, "losses": np.stack(losses), "alone": alone, "news": news, **flags}


def train_all(cases: tuple[Case, ...]) -> list[dict[str, Any]]:
    team = join_team(CPU)
    found = [train(case, team) for case in cases]
    team.leave()
    return found


@pytest.mark.slow
def test_each_process_makes_its_own_parts_and_keeps_to_the_exchanges() -> None:
    together = run_together(2, train_all, CASES)
    alone = {model: train(Case(model), Team()) for model in ("yolo11n", "yolov5n")}
    for case, *results in zip(CASES, *together, strict=True):
        for name, value in results[0]["weights"].items():
            assert np.array_equal(value, results[1]["weights"][name]), (case, name)
        if case.images:
            check_that_all_was_learned(case, results, alone[case.model])
        else:
            check_that_all_are_asked_to_stop(case, results)


def check_that_all_was_learned(case: Case, results: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    start = training_of(case.model).detector.state_dict()
    way = [np.abs(value - start[name].numpy()).max() for name, value in expected["weights"].items()]
    assert max(way) > 0.01  # far more than the tolerance below
    for rank, found in enumerate(results):
        assert np.allclose(found["losses"], expected["losses"], rtol=1e-3), case
        for name, value in expected["weights"].items():
            assert np.allclose(found["weights"][name], value, rtol=1e-3, atol=1e-5), (case, name)
        assert found["alone"] == 1 or rank != case.rank
        assert found["news"] == 1, case


def check_that_all_are_asked_to_stop(case: Case, results: list[dict[str, Any]]) -> None:
    """The update with the image that was too much changes nothing, and the steps before it stay."""
    for rank, found in enumerate(results):
        assert [stop > 0 for stop, _ in found["asked"]] == [step >= case.step for step in range(STEPS)], case
        assert found["skipped"] == [False] * 3 + [True], case
        assert np.isnan(found["losses"][case.step]).all(), case
        assert ("even for one image at a time" in found["exhausted"]) == (rank == case.rank), case
