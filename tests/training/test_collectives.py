"""What the processes of a run exchange, and how they meet and part."""

import os
import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist

from processes import join_team, run_together
from yoloyard.common.device import Precision
from yoloyard.training.distributed import collectives
from yoloyard.training.distributed.collectives import Team, agreed_precision
from yoloyard.training.distributed.watch import Watch
from yoloyard.training.state.randomness import RandomNumbers, seed_all


def test_a_gpu_is_handed_to_nccl_with_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: dict[str, Any] = {}
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # as torchrun does
    monkeypatch.setattr(dist, "rendezvous", lambda address, **options: iter([(dist.HashStore(), 1, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: handed.update(options, backend=backend))

    def new_group(**options: Any) -> None:
        handed["host"] = options

    monkeypatch.setattr(dist, "new_group", new_group)
    monkeypatch.setattr(Watch, "keep_watching", lambda watch: None)
    team = join_team(torch.device("cuda", 1), 60.0)
    assert (handed["backend"], handed["device_id"], handed["rank"]) == ("nccl", torch.device("cuda:1"), 1)
    assert handed["device_id"].index is not None
    assert handed["host"]["backend"] == "gloo"
    assert handed["timeout"] > handed["host"]["timeout"]
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    assert team.watch.hang_timeout == 60.0


def in_a_team() -> dict[str, Any]:
    """What one of several processes draws and agrees on; it goes in good order."""
    team = join_team(torch.device("cpu"))
    seed_all(5 + team.rank)
    states = team.gather(RandomNumbers(torch.device("cpu")).state_dict())
    able = [torch.bfloat16, torch.float32][team.rank]
    agreed = agreed_precision(Precision("cpu", able), team).name
    draws = torch.rand(3).tolist()
    team.leave()
    return {"draws": draws, "states": len(states), "agreed": agreed, "is over": not dist.is_initialized()}


@pytest.mark.slow
def test_processes_draw_each_their_own_and_agree_on_the_simplest_precision() -> None:
    first, second = run_together(2, in_a_team)
    assert first["draws"] != second["draws"]
    assert (first["states"], second["states"]) == (2, 0)
    assert first["agreed"] == second["agreed"] == "float32"
    assert first["is over"]
    assert second["is over"]


def test_nccl_is_aborted_where_the_others_may_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Group:
        abort = staticmethod(lambda: done.append("abort"))

    class Groups:
        WORLD = Group()

    monkeypatch.setattr(dist, "group", Groups)
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(dist, "destroy_process_group", lambda group=None: done.append("destroy"))
    collectives._destroy_groups(in_order=True)
    assert done == ["destroy"]
    collectives._destroy_groups(in_order=False)
    assert done == ["destroy", "abort", "destroy"]


def test_parting_does_not_wait_for_a_process_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    for_ever = threading.Event()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(collectives, "_destroy_groups", lambda in_order: for_ever.wait())
    monkeypatch.setattr(collectives, "LEAVE_SECONDS", 0.01)
    team = Team(Watch(0, 2, dist.HashStore()))
    with pytest.raises(KeyboardInterrupt), team.watched():
        raise KeyboardInterrupt
    assert not for_ever.is_set()
    for_ever.set()
