"""Memory that is freed on a CPU stays with the process for its next step, until it is given back."""

import json
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import json
from pathlib import Path

import torch

from yoloyard.device import give_memory_back, reuse_memory


def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


reuse_memory(torch.device("cpu"))
before = resident()
maps = [torch.ones(10 * 2**20) for _ in range(5)]  # 40 MB each
full = resident()
del maps
freed = resident()
give_memory_back(torch.device("cpu"))
print(json.dumps([value - before for value in (full, freed, resident())]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what keeps memory is a function of glibc")
def test_freed_memory_is_kept_and_then_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    full, freed, given_back = json.loads(done.stdout)
    assert full > 190
    assert freed > 0.9 * full
    assert given_back < 20
