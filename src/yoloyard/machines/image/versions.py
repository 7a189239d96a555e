"""The matrix of images: which tag has which PyTorch and CUDA, and which fits a machine."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

import yoloyard.docker
from yoloyard.common.errors import UsageError, UserError

TABLE = Path(yoloyard.docker.__file__).parent / "versions.toml"
CPU = "cpu"


@dataclass(frozen=True)
class Tag:
    """An image. Empty strings where there is no CUDA; see versions.toml for what each field means."""

    name: str
    torch: str
    cuda: str
    cudnn: str
    nccl: str
    ubuntu: str
    python: str
    architectures: tuple[str, ...]
    driver: str
    index: str
    aliases: tuple[str, ...]
    sources: dict[str, str]

    def runs_on(self, capability: str) -> bool:
        """Whether the wheel has code for a GPU: binary code runs on the same major and the same or a higher minor
        capability (CUDA C++ Programming Guide, binary compatibility). `capability` is like "8.6"."""
        major, minor = map(int, capability.split("."))
        compiled = [divmod(int(architecture.removeprefix("sm_")), 10) for architecture in self.architectures]
        return any(major == of_major and minor >= of_minor for of_major, of_minor in compiled)


def tags(table: Path = TABLE) -> dict[str, Tag]:
    """All tags by name, in the order of their table. Raises UserError if an entry lacks a field or has another."""
    known = {field.name for field in fields(Tag)} - {"name"}
    found = {}
    for name, entry in tomllib.loads(table.read_text(encoding="utf-8"))["tags"].items():
        if wrong := known ^ entry.keys():
            raise UserError(f"{table}: the entry {name} lacks or should not have: {', '.join(sorted(wrong))}")
        lists = {key: tuple(entry[key]) for key in ("architectures", "aliases")}
        found[name] = Tag(name=name, **(entry | lists))
    return found


def find_tag(name: str, table: Path = TABLE) -> Tag:
    """The tag of a name or an alias. Raises UsageError that names the nearest."""
    names = {word: tag for tag in tags(table).values() for word in (tag.name, *tag.aliases)}
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ";"
        raise UsageError(f"there is no tag {name}{hint} `yoloyard image list` shows all")
    return names[name]


def best_tag(driver: str | None, capabilities: list[str], table: Path = TABLE) -> Tag:
    """The newest tag that a machine can use.

    Args:
        driver: version of the NVIDIA driver, such as "570.26"; None without one
        capabilities: compute capabilities of all its GPUs, such as ["8.6", "9.0"]

    Raises:
        UserError: none fits, with the reason and what to do
    """
    found = tags(table)
    if driver is None or not capabilities:
        return found[CPU]
    with_cuda = [tag for tag in found.values() if tag.cuda]
    for_gpus = [tag for tag in with_cuda if all(map(tag.runs_on, capabilities))]
    if not for_gpus:
        shown = ", ".join(sorted(set(capabilities)))
        raise UserError(
            f"no tag has code for all GPUs of this machine (compute capability {shown}): "
            "use some of them (--gpus 0), or `--gpus none` with the tag cpu"
        )
    fitting = [tag for tag in for_gpus if number(driver) >= number(tag.driver)]
    if not fitting:
        least = min((tag.driver for tag in for_gpus), key=number)
        raise UserError(
            f"the NVIDIA driver {driver} is too old for every tag: update it on the host to {least} or newer"
        )
    return max(fitting, key=lambda tag: (number(tag.torch), number(tag.cuda)))


def repository() -> str:
    """How images are called: $YOLOYARD_IMAGE, such as a team's path in its registry, or yoloyard."""
    return os.environ.get("YOLOYARD_IMAGE") or "yoloyard"


def number(version: str) -> tuple[int, ...]:
    """A version for comparing: "570.26" -> (570, 26)."""
    return tuple(map(int, re.findall(r"\d+", version)))
