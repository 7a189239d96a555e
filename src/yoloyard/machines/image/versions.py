"""The matrix of images: which tag has which PyTorch and CUDA, and which fits a machine."""

import difflib
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

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


def code_for(capability: str | None, architectures: Sequence[str]) -> Literal["binary", "ptx"] | None:
    """How a wheel with code for `architectures` runs on a GPU of this compute capability ("8.6"); None: it doesn't.

    Binary code for X.Y runs on X.Z with Z >= Y, of sm_XYa on X.Y alone, of sm_XYf on its family X.Z; PTX is
    compiled at run time on all that is newer (CUDA C++ Programming Guide, "Binary Compatibility", "PTX Compatibility").
    """
    own = number(capability or "")[:2]
    kinds = set()
    for kind, major, minor, special in re.findall(r"\b(sm|compute)_(\d+)(\d)([af]?)\b", " ".join(architectures)):
        built = int(major), int(minor)
        is_any_major = kind == "compute" and not special
        if own and (built == own or (special != "a" and built <= own and (is_any_major or built[0] == own[0]))):
            kinds.add(kind)
    return "binary" if "sm" in kinds else "ptx" if kinds else None


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
    """The newest tag for a machine with this NVIDIA driver ("570.26"; None: without) and GPUs of these capabilities.

    Raises UserError that says why none fits and what to do.
    """
    found = tags(table)
    if driver is None or not capabilities:
        return found[CPU]
    compiled = [tag for tag in found.values() if all(code_for(c, tag.architectures) == "binary" for c in capabilities)]
    fitting = [tag for tag in compiled if number(driver) >= number(tag.driver)]
    if not compiled:
        reason = (
            f"no tag has code for all GPUs of this machine (compute capability {', '.join(sorted(set(capabilities)))})"
        )
        raise UserError(f"{reason}: use some of them (--gpus 0), or `--gpus none` with the tag cpu")
    if not fitting:
        least = min((tag.driver for tag in compiled), key=number)
        reason = f"the NVIDIA driver {driver} is too old for every tag"
        raise UserError(f"{reason}: update it on the host to {least} or newer")
    return max(fitting, key=lambda tag: (number(tag.torch), number(tag.cuda)))


def repository() -> str:
    """How images are called: $YOLOYARD_IMAGE, such as a team's path in its registry, or yoloyard."""
    return os.environ.get("YOLOYARD_IMAGE") or "yoloyard"


def number(version: str) -> tuple[int, ...]:
    """A version for comparing: "570.26" -> (570, 26)."""
    return tuple(map(int, re.findall(r"\d+", version)))
