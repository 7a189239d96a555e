"""Are the versions there that packages ask for: the CUDA wheels of torch, and all that yoloyard stands on?"""

from __future__ import annotations

import re
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from yoloyard.machines.doctor.finding import Finding

ROOTS = ("yoloyard", "torch", "torchvision")
CUDA = re.compile(r"nvidia-|cuda-|triton$")
SHOWN = 4


def check(packages: dict[str, Any], pip: str) -> list[Finding]:
    """`packages` as `environment.packages.gather` found them, `pip` the command that a remedy begins with."""
    missing, wrong = unmet(packages)
    found = []
    for check_name, title, of_cuda in (
        ("cuda-wheels", "CUDA libraries of torch", True),
        ("requirements", "Versions that packages ask for", False),
    ):
        rows = [row for row in [*missing, *wrong] if bool(CUDA.match(canonicalize_name(row[1].name))) == of_cuda]
        if not rows:
            continue
        shown = [f"{who} asks for {wanted.name}{wanted.specifier}, {has}" for who, wanted, has in rows]
        more = [f"and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
        wanted = " ".join(dict.fromkeys(_quoted(requirement) for _, requirement, _ in rows))
        is_bad = of_cuda or any(row in missing or row[0].startswith("yoloyard ") for row in rows)
        evidence = "; ".join(shown[:SHOWN] + more)
        remedy = f"{pip} install {'--no-deps ' if of_cuda else ''}{wanted}"
        found.append(Finding(check_name, title, "problem" if is_bad else "warning", evidence, remedy))
    if not found:
        count = len({row["name"] for row in packages["distributions"]})
        evidence = f"what yoloyard and torch ask for is there ({count} packages are installed)"
        found.append(Finding("requirements", "Versions that packages ask for", "ok", evidence))
    return found


Unmet = tuple[str, Requirement, str]  # who asks, for what, what is there


def unmet(packages: dict[str, Any]) -> tuple[list[Unmet], list[Unmet]]:
    """Requirements that nothing and that another version answers, of `ROOTS` and all that they stand on."""
    rows: dict[str, dict[str, Any]] = {}
    for row in packages["distributions"]:
        rows.setdefault(canonicalize_name(row["name"]), row)
    environment = {**default_environment(), "python_full_version": packages["version"]}
    environment["python_version"] = ".".join(packages["version"].split(".")[:2])
    missing, wrong = [], []
    todo = [(name, frozenset[str]()) for name in ROOTS if name in rows]
    done = set(todo)
    while todo:
        name, extras = todo.pop(0)
        row = rows[name]
        for text in row["requires"]:
            try:
                wanted = Requirement(text)
            except InvalidRequirement:
                continue  # of an old tool's making; pip passes it over too
            if wanted.marker and not any(wanted.marker.evaluate({**environment, "extra": x}) for x in extras or {""}):
                continue
            if (row["name"], wanted.name) == ("torchvision", "torch"):
                continue  # torchvision is to fit torch, not the other way round; see `packages`
            key, who = canonicalize_name(wanted.name), f"{row['name']} {row['version']}"
            there = rows.get(key)
            if there is None:
                missing.append((who, wanted, "which is not installed"))
                continue
            if not _satisfies(there["version"], wanted):
                wrong.append((who, wanted, f"{there['version']} is installed"))
            step = (key, frozenset(wanted.extras))
            if step not in done:
                done.add(step)
                todo.append(step)
    return missing, wrong


def _satisfies(version: str, wanted: Requirement) -> bool:
    try:
        return wanted.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return True


def _quoted(requirement: Requirement) -> str:
    return f"'{requirement.name}{requirement.specifier}'" if requirement.specifier else requirement.name
