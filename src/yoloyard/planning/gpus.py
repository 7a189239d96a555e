"""The devices that a plan knows: GPUs of gpus.toml, and the processor and GPUs of this host."""

import dataclasses
import difflib
import functools
import logging
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yoloyard.common.cores import processor, usable_cores
from yoloyard.common.errors import UsageError
from yoloyard.data.loading.limits import free_memory
from yoloyard.planning.figures import Gpu
from yoloyard.planning.hours import assumed

log = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("gpus.toml")
MAKERS = ("nvidia", "geforce", "tesla")  # words that a name may have or not

DEFAULT_MEGAHERTZ = 2500.0  # where the system doesn't say


@functools.cache
def gpus() -> Mapping[str, Gpu]:
    """All GPUs of gpus.toml by their names."""
    return {
        name: Gpu(
            name=name,
            memory=row["memory"] * 2**20,
            bandwidth=row["bandwidth"] * 1e9,
            flops={dtype: tera * 1e12 for dtype, tera in row["tflops"].items()},
            capability=row["capability"],
            link=row["link"] * 1e9,
        )
        for name, row in table()["gpus"].items()
    }


@functools.cache
def table() -> dict[str, Any]:
    """What gpus.toml says."""
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def find_gpu(name: str) -> Gpu:
    """The GPU that a user, a cloud or torch calls so. Raises UsageError for an unknown name, naming the nearest."""
    if (found := _names().get(_plain(name))) is None:
        near = difflib.get_close_matches(_plain(name), _names(), n=1, cutoff=0.5)
        hint = f"did you mean '{_names()[near[0]]}'?" if near else f"there are: {', '.join(gpus())}"
        raise UsageError(f"unknown GPU '{name}'; {hint}")
    return gpus()[found]


def cpu_device(facts: Mapping[str, Any], threads: int, memory: float) -> Gpu:
    """A processor that trains with so many threads; `facts` are those of `cores.processor`, `memory` bytes it may take.

    All figures are modelled (efficiencies.toml) from frequency and instructions. A processor has no capability.
    """
    has, table = {*facts["instructions"]}, assumed()
    joined = "avx512f" in has and "AMD" in facts["name"]  # see efficiencies.toml
    widest = "avx2" if joined else next((each for each in ("avx512f", "avx2", "asimd") if each in has), "asimd")
    second = (facts["megahertz"] or DEFAULT_MEGAHERTZ) * 1e6 * threads  # cycles of all threads
    flops = {"float32": table[widest] * second}
    if "amx_bf16" in has:
        flops["bfloat16"] = table["amx_bf16"] * second
    elif has & {"avx512_bf16", "bf16"}:
        flops["bfloat16"] = 2 * flops["float32"]
    kind = next((each for each in ("amx_bf16", "avx512_bf16", "bf16", "avx512f", "avx2") if each in has), "")
    name = f"{facts['name']} ({kind})" if kind else facts["name"]
    bandwidth = min(table["core_bandwidth"] * threads, table["host_bandwidth"])
    return Gpu(f"CPU {name}, {threads} thread{'s' * (threads > 1)}", memory, bandwidth, flops, "", bandwidth)


def own_devices() -> list[Gpu]:
    """What this host has: the kinds of its GPUs that the table knows, then its processor."""
    import torch

    memory: dict[str, float] = {}  # of cards of one name the least, which may be less than the table says
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        memory[card.name] = min(float(card.total_memory), memory.get(card.name, math.inf))
    found = []
    for name, size in memory.items():
        try:
            found.append(dataclasses.replace(find_gpu(name), memory=size))
        except UsageError:
            log.info(f"this host's {name} is not in the table of GPUs: the plan leaves it out")
    threads = min(torch.get_num_threads(), usable_cores())  # as a run takes them if the cores are idle
    return [*found, cpu_device(processor(), threads, float(free_memory()))]


@functools.cache
def _names() -> Mapping[str, str]:
    """The name in gpus.toml by all plain names."""
    rows = table()["gpus"].items()
    return {_plain(each): name for name, row in rows for each in (name, *row["names"])}


def _plain(name: str) -> str:
    plain = re.sub("[^a-z0-9]", "", name.lower())
    return functools.reduce(lambda text, word: text.replace(word, ""), MAKERS, plain)
