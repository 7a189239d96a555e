"""Memory that is freed on a CPU stays with the process for its next step, until it is given back."""

import json
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from yoloyard import cpu
from yoloyard.common.device import Precision
from yoloyard.cpu import memory
from yoloyard.cpu.memory import give_memory_back, reuse_memory

# glibc counts bytes itself: `arena` has come from the system by the heap, `mapped` in blocks of their own.
SCRIPT = """
import ctypes, json
import torch
from yoloyard.common.device import Precision
from yoloyard.cpu.memory import reuse_memory

NAMES = ("arena", "ordblks", "smblks", "hblks", "mapped", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")

class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]

glibc = ctypes.CDLL(None)
glibc.mallinfo2.restype = Counts
reuse_memory(Precision("cpu", torch.float32))
counts = [glibc.mallinfo2()]
tensors = [torch.empty(10 * 2**20) for _ in range(5)]  # 40 MB each
counts.append(glibc.mallinfo2())
del tensors
counts.append(glibc.mallinfo2())
print(json.dumps([[count.arena, count.mapped] for count in counts]))
"""
BYTES = 5 * 40 * 2**20
IS_GLIBC = platform.libc_ver()[0] == "glibc"
HAS_COUNTS = IS_GLIBC and tuple(map(int, platform.libc_ver()[1].split("."))) >= (2, 33)


@pytest.mark.skipif(not HAS_COUNTS, reason="glibc counts its memory in full since 2.33")
def test_large_tensors_lie_in_the_heap_and_stay_there_when_freed() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    (before, mapped), (full, mapped_too), (freed, _) = json.loads(done.stdout)
    assert full - before > 0.9 * BYTES  # some of it had been free
    assert mapped_too == mapped
    assert freed == full


class Glibc:
    """Notes what is asked of the C library."""

    def __init__(self, name: str | None) -> None:
        assert name is None

    calls: list[tuple[object, ...]]

    def mallopt(self, *arguments: int) -> None:
        self.calls.append(("mallopt", *arguments))

    def malloc_trim(self, *arguments: int) -> None:
        self.calls.append(("malloc_trim", *arguments))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What has been asked of the C library, which here is a glibc."""
    monkeypatch.setattr(Glibc, "calls", [], raising=False)
    monkeypatch.setattr(memory, "ctypes", SimpleNamespace(CDLL=Glibc))
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    return Glibc.calls


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_training_gives_memory_back_after_its_second_batch_alone(
    num_processes: int, asked: list[tuple[object, ...]]
) -> None:
    precision = Precision("cpu", torch.float32)
    around_step = cpu.prepare_training(torch.nn.Linear(2, 2), lambda *_: {}, precision, num_processes)
    given_back = []
    for _ in range(4):
        with around_step():
            pass
        given_back.append(asked.count(("malloc_trim", 0)))
    assert given_back == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("place", "path", "library", "expected"),
    [
        ("cpu", "auto", "glibc", [("mallopt", -1, -1), ("mallopt", -4, 0), ("malloc_trim", 0)]),
        ("cpu", "auto", "musl", []),
        ("cpu", "accelerator", "glibc", []),
        ("cuda", "auto", "glibc", []),
        ("meta", "auto", "glibc", []),
    ],
)
def test_only_glibc_is_asked_and_only_for_a_cpu(
    place: str,
    path: str,
    library: str,
    expected: list[tuple[object, ...]],
    asked: list[tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: (library, "2.36"))
    precision = Precision(place, torch.float32, path)
    reuse_memory(precision)
    give_memory_back(precision)
    assert asked == expected
