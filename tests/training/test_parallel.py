"""What several processes see of each other, and what is said when one is missing."""

import dataclasses
import datetime
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from on_device import Training
from processes import run_together
from yoloyard.common.device import Precision
from yoloyard.common.errors import SilentError, UserError
from yoloyard.training.distributed import parallel, process_identity
from yoloyard.training.distributed.parallel import LostProcessError, Shown, Team, agreed_precision, find_loss, join_team
from yoloyard.training.state.checkpoint import read_header, restore, snapshot_of, write
from yoloyard.training.state.progress import Progress
from yoloyard.training.state.randomness import RandomNumbers, seed_all

ELSEWHERE = Shown("other-start pid:[1] 7 7", places=9)  # on another host, where nobody can look
GONE = Shown(" ".join([*process_identity.own_identity().split()[:3], "1"]))  # our number, of a process that was before


@pytest.fixture
def sleeper() -> Any:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    yield process
    process.kill()
    process.wait()


def identity_of(process: Any) -> str:
    return " ".join(
        [*process_identity.own_identity().split()[:2], str(process.pid), process_identity._start_of(process.pid)]
    )


def test_a_process_is_known_by_its_start_and_its_namespace(sleeper: Any) -> None:
    identity = identity_of(sleeper)
    start, namespace, number, since = identity.split()
    assert not process_identity.is_dead(identity)
    others = [
        f"another-start {namespace} {number} {since}",
        f"{start} pid:[1] {number} {since}",  # a container with the same host name and host networking
        "",
    ]
    for other in others:  # nobody knows of these
        assert not process_identity.is_dead(other)
        process_identity.kill(other)
    earlier = f"{start} {namespace} {number} {int(since) - 1}"
    assert process_identity.is_dead(earlier)
    process_identity.kill(earlier)
    assert sleeper.poll() is None
    process_identity.kill(identity)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert process_identity.is_dead(identity)  # not yet reaped
    sleeper.wait()
    assert process_identity.is_dead(identity)


@pytest.mark.parametrize(
    ("shown", "silent", "still", "text", "elsewhere"),
    [
        ([ELSEWHERE, ELSEWHERE], 0, 0, "", None),
        ([ELSEWHERE, GONE], 0, 0, "process 1 was killed", True),
        ([ELSEWHERE, dataclasses.replace(GONE, left=True)], 99, 99, "", None),  # it has ended in good order
        ([ELSEWHERE, dataclasses.replace(GONE, failed="x")], 99, 0, "process 1 has failed", False),
        ([ELSEWHERE, dataclasses.replace(ELSEWHERE, failed="x"), GONE], 0, 0, "process 2 was killed", True),
        ([ELSEWHERE, ELSEWHERE], 12, 0, "", None),  # the main thread comes first
        ([ELSEWHERE, ELSEWHERE], 14, 0, "process 1 shows no sign of life", True),
        ([ELSEWHERE, dataclasses.replace(ELSEWHERE, places=8)], 0, 14, "no process gets any further", True),
        ([ELSEWHERE, dataclasses.replace(ELSEWHERE, places=10)], 0, 14, "", None),  # this one may be to blame
        ([ELSEWHERE, ELSEWHERE], 0, 14, "", None),
        ([ELSEWHERE, ELSEWHERE], 0, 20, "no process gets any further", True),
    ],
)
def test_what_process_0_can_tell_of_the_others(
    shown: list[Shown], silent: float, still: float, text: str, elsewhere: bool | None
) -> None:
    loss = find_loss(0, shown, [0.0] + [silent] * (len(shown) - 1), still, limit=10)
    assert (loss.text if loss else "", loss.elsewhere if loss else None) == (text, elsewhere)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REPORT_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(parallel, name, 0.05)


def team_of_two() -> tuple[Team, Team]:
    """Two processes of different hosts, which both are this one."""
    store = dist.HashStore()
    first, second = Team(0, 2, store), Team(1, 2, store)
    second._show(identity="")  # or the first would end it
    return first, second


def explained(team: Team, error: Exception) -> UserError:
    """In a thread, as nothing here may change how this process takes signals."""
    found: list[UserError] = []
    thread = threading.Thread(target=lambda: found.append(team._explained(error)))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes"),
        MemoryError(),
    ],
)
def test_an_error_of_memory_is_named_as_in_one_process(error: Exception, quick: None) -> None:
    first, second = team_of_two()
    second.reached("epoch 3, step 2")
    said = str(explained(second, error))
    assert said.startswith("process 1 of 2, at epoch 3, step 2: the ")
    assert "has too little memory: lower --batch or --imgsz" in said
    assert isinstance(explained(first, LostProcessError("process 1 has failed")), SilentError)


def test_one_process_says_who_is_missing(quick: None) -> None:
    first, second = team_of_two()
    second.reached("epoch 2, step 1")
    assert "process 1, last seen at epoch 2, step 1, was killed or hangs" in str(
        explained(first, LostProcessError("it was killed"))
    )
    assert isinstance(explained(second, LostProcessError("process 0 has failed")), SilentError)


def test_who_was_killed_is_named_and_not_who_is_slow_to_notice_it(quick: None) -> None:
    store = dist.HashStore()
    first, slow, killed = (Team(rank, 3, store) for rank in range(3))
    slow._show(identity="")
    killed._show(identity=GONE.identity)
    said = str(explained(first, LostProcessError("it was killed")))
    assert said.startswith("process 2, last seen at the beginning, was killed or hangs; the run ends")


def test_a_phase_ends_where_another_process_has_failed(quick: None) -> None:
    first, second = team_of_two()
    second._show(failed="ValueError: x")
    first.watch()
    with pytest.raises(LostProcessError, match="process 1 has failed"), first.long_work():
        pass
    first._ending.set()


def test_before_the_first_steps_the_limit_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[datetime.timedelta] = []
    monkeypatch.setattr(dist.distributed_c10d, "_set_pg_timeout", lambda limit, group=None: limits.append(limit))
    team, _ = team_of_two()
    team.hang_timeout = 7.0
    for step in range(parallel.FIRST_PLACES - 1):
        team.reached(f"step {step}")
    assert (team._limit, limits) == (parallel.START_SECONDS, [])
    for step in range(3):
        team.reached(f"step {step}")
    assert (team._limit, limits) == (7.0, [datetime.timedelta(seconds=7)])


def test_a_gpu_is_handed_to_nccl_with_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: dict[str, Any] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # as torchrun does
    monkeypatch.setattr(dist, "rendezvous", lambda address: iter([(dist.HashStore(), 1, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: handed.update(options, backend=backend))

    def new_group(**options: Any) -> None:
        handed["host"] = options

    monkeypatch.setattr(dist, "new_group", new_group)
    monkeypatch.setattr(Team, "watch", lambda team: None)
    team = join_team(torch.device("cuda", 1), 60.0)
    assert (handed["backend"], handed["device_id"], handed["rank"]) == ("nccl", torch.device("cuda:1"), 1)
    assert handed["device_id"].index is not None
    assert handed["host"]["backend"] == "gloo"
    assert handed["timeout"] > handed["host"]["timeout"]
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    assert team.hang_timeout == 60.0


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
    parallel._destroy_groups(in_step=True)
    assert done == ["destroy"]
    parallel._destroy_groups(in_step=False)
    assert done == ["destroy", "abort", "destroy"]


def test_parting_does_not_wait_for_a_process_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    for_ever = threading.Event()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(parallel, "_destroy_groups", lambda in_step: for_ever.wait())
    monkeypatch.setattr(parallel, "LEAVE_SECONDS", 0.01)
    team, _ = team_of_two()
    with pytest.raises(KeyboardInterrupt), team.watched():
        raise KeyboardInterrupt
    assert not for_ever.is_set()
    for_ever.set()


def test_a_checkpoint_gives_each_process_its_random_numbers_back(tmp_path: Path) -> None:
    device = torch.device("cpu")
    engine, numbers = Training(device).engine, RandomNumbers(device)
    states, drawn = [], []
    for rank in range(2):
        seed_all(rank)
        states.append(numbers.state_dict())
        drawn.append([torch.rand(1).item(), random.random(), np.random.random()])
    assert drawn[0] != drawn[1]
    write(snapshot_of({}, engine, Progress(), states), tmp_path / "last")
    header = read_header(tmp_path / "last")
    for rank, expected in enumerate(drawn):
        restore(header, engine, Progress(), numbers, rank)
        assert [torch.rand(1).item(), random.random(), np.random.random()] == expected
    before = torch.get_rng_state()
    restore(header, engine, Progress(), numbers, rank=2)  # of a run that had two processes
    assert torch.equal(torch.get_rng_state(), before)
