"""What a process sees of the others, and what is said when one is missing."""

import dataclasses
import datetime
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist

from yoloyard.common.errors import SilentError, UserError
from yoloyard.training.distributed import watch
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.distributed.watch import LostProcessError, Shown, Watch, find_loss, pid_namespace

NOBODY = 2**22 + 1  # a number above all that Linux gives
ELSEWHERE = Shown("other-start pid:[1]", 7, places=9)  # on another host, where nobody can look


@pytest.fixture
def sleeper() -> Any:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_known_by_its_start_and_its_namespace(sleeper: Any, quick: None) -> None:
    start, namespace = pid_namespace().split()
    others = [
        f"another-start {namespace}",
        f"{start} pid:[1]",  # a container with the same host name and host networking
        "",
    ]
    for other in others:  # nobody knows of these, and nobody ends them
        for number in (sleeper.pid, NOBODY):
            first, second = two_watches()
            second.show(namespace=other, pid=number)
            assert 1 not in first._dead(first._all_shown())
            explained(first, LostProcessError("it is late"))
    first, second = two_watches()
    second.show(namespace=pid_namespace(), pid=sleeper.pid)
    assert not first._dead(first._all_shown())
    started = first._processes[1]._ident
    first._processes[1]._ident = (sleeper.pid, 1.0)  # of a process that had the number before
    assert first._dead(first._all_shown()) == {1}
    explained(first, LostProcessError("it is late"))
    assert sleeper.poll() is None
    first, second = two_watches()
    second.show(namespace=pid_namespace(), pid=sleeper.pid)
    assert not first._dead(first._all_shown())
    assert first._processes[1]._ident == started
    explained(first, LostProcessError("it is late"))
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert first._dead(first._all_shown()) == {1}  # not yet reaped
    sleeper.wait()
    assert first._dead(first._all_shown()) == {1}


@pytest.mark.parametrize(
    ("shown", "dead", "silent", "still", "text", "elsewhere"),
    [
        ([ELSEWHERE, ELSEWHERE], set(), 0, 0, "", None),
        ([ELSEWHERE, ELSEWHERE], {1}, 0, 0, "process 1 was killed", True),
        ([ELSEWHERE, dataclasses.replace(ELSEWHERE, left=True)], {1}, 99, 99, "", None),  # it has ended in good order
        ([ELSEWHERE, dataclasses.replace(ELSEWHERE, failed="x")], {1}, 99, 0, "process 1 has failed", False),
        ([ELSEWHERE, dataclasses.replace(ELSEWHERE, failed="x"), ELSEWHERE], {2}, 0, 0, "process 2 was killed", True),
        ([ELSEWHERE, ELSEWHERE], set(), 12, 0, "", None),  # the main thread comes first
        ([ELSEWHERE, ELSEWHERE], set(), 14, 0, "process 1 shows no sign of life", True),
        ([ELSEWHERE, dataclasses.replace(ELSEWHERE, places=8)], set(), 0, 14, "no process gets any further", True),
        ([ELSEWHERE, dataclasses.replace(ELSEWHERE, places=10)], set(), 0, 14, "", None),  # this one may be to blame
        ([ELSEWHERE, ELSEWHERE], set(), 0, 14, "", None),
        ([ELSEWHERE, ELSEWHERE], set(), 0, 20, "no process gets any further", True),
    ],
)
def test_what_process_0_can_tell_of_the_others(
    shown: list[Shown], dead: set[int], silent: float, still: float, text: str, elsewhere: bool | None
) -> None:
    loss = find_loss(0, shown, dead, [0.0] + [silent] * (len(shown) - 1), still, limit=10)
    assert (str(loss) if loss else "", loss.elsewhere if loss else None) == (text, elsewhere)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REPORT_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(watch, name, 0.05)


def two_watches() -> tuple[Watch, Watch]:
    """Those of two processes of different hosts, which both are this one."""
    store = dist.HashStore()
    first, second = Watch(0, 2, store), Watch(1, 2, store)
    second.show(namespace="")  # or the first would end it
    return first, second


def explained(of: Watch, error: Exception) -> UserError:
    """In a thread, as nothing here may change how this process takes signals."""
    found: list[UserError] = []
    thread = threading.Thread(target=lambda: found.append(of.explained(error)))
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
    first, second = two_watches()
    Team(second).reached("epoch 3, step 2")
    said = str(explained(second, error))
    assert said.startswith("process 1 of 2, at epoch 3, step 2: the ")
    assert "has too little memory: lower --batch or --imgsz" in said
    assert isinstance(explained(first, LostProcessError("process 1 has failed")), SilentError)


def test_one_process_says_who_is_missing(quick: None) -> None:
    first, second = two_watches()
    Team(second).reached("epoch 2, step 1")
    assert "process 1, last seen at epoch 2, step 1, was killed or hangs" in str(
        explained(first, LostProcessError("it was killed"))
    )
    assert isinstance(explained(second, LostProcessError("process 0 has failed")), SilentError)


def test_who_was_killed_is_named_and_not_who_is_slow_to_notice_it(quick: None) -> None:
    store = dist.HashStore()
    first, slow, killed = (Watch(rank, 3, store) for rank in range(3))
    slow.show(namespace="")
    killed.show(pid=NOBODY)
    said = str(explained(first, LostProcessError("it was killed")))
    assert said.startswith("process 2, last seen at the beginning, was killed or hangs; the run ends")


def test_a_phase_ends_where_another_process_has_failed(quick: None) -> None:
    first, second = two_watches()
    second.show(failed="ValueError: x")
    threading.Thread(target=first.keep_watching, daemon=True).start()
    with pytest.raises(LostProcessError, match="process 1 has failed"), first.long_work():
        pass
    first.ending.set()


def test_before_the_first_steps_the_limit_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[datetime.timedelta] = []
    monkeypatch.setattr(dist.distributed_c10d, "_set_pg_timeout", lambda limit, group=None: limits.append(limit))
    team = Team(Watch(0, 2, dist.HashStore(), hang_timeout=7.0))
    for step in range(watch.FIRST_PLACES - 1):
        team.reached(f"step {step}")
    assert (team.watch.limit, limits) == (watch.START_SECONDS, [])
    for step in range(3):
        team.reached(f"step {step}")
    assert (team.watch.limit, limits) == (7.0, [datetime.timedelta(seconds=7)])


def test_a_store_that_is_out_of_reach_is_found_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "ANSWER_SECONDS", 0.05)
    first, _ = two_watches()
    assert first._store is not None
    cut = threading.Event()
    monkeypatch.setattr(first._store, "_store", type("Cut", (), {"set": lambda *_: cut.wait(60)})())
    with pytest.raises(LostProcessError, match="the store has not answered"):
        first.show(place="epoch 1, step 3")
    assert "the connection to the other processes is lost, at epoch 1, step 3" in str(explained(first, OSError("x")))
    cut.set()
