"""In what two runs or machines differ, the likeliest causes of other results first."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from yoloyard.common.errors import UserError, printable
from yoloyard.common.versions import PACKAGES
from yoloyard.config.settings import TrainConfig, settings_of

ABSENT = "-"
NAMED = 20  # differences of a group that does not decide results
DECISIVE = ("data set", "settings", "code", "arithmetic", "packages that decide results", "GPU", "variables")
GROUPS = (*DECISIVE, "driver", "other packages", "machine", "command")  # in the order in which they explain results
PARTLY = {"arithmetic", "GPU", "machine"}  # of which a run says more than the doctor: what both say is compared
# NCCL of other versions does not understand one another: processes on two nodes hang or fail.
TOGETHER = {"torch": ("torch", "packages that decide results"), "nccl": ("NCCL", "arithmetic")}

Facts = dict[str, dict[str, Any]]  # group, name, value


@dataclass(frozen=True)
class Comparison:
    """`differences`: by group, name and the two values. `missing`: groups that one of the two says nothing of."""

    differences: dict[str, list[tuple[str, Any, Any]]]
    missing: list[str]
    problems: list[str]

    @property
    def decides(self) -> bool:
        """Whether something differs that decides results, or that keeps two nodes from training together."""
        return bool(self.problems) or any(group in DECISIVE for group in self.differences)

    def as_dict(self) -> dict[str, Any]:
        """The document of `yoloyard doctor diff --json` (docs/json.md): values as texts, None where there is none."""
        differences = [
            {"group": group, "decides": group in DECISIVE, "name": name, "first": _text(one), "second": _text(other)}
            for group, rows in self.differences.items()
            for name, one, other in rows
        ]
        return {"decides": self.decides, "problems": self.problems, "missing": self.missing, "differences": differences}

    def lines(self) -> list[str]:
        """The comparison for people."""
        lines = [f"problem: {problem}" for problem in self.problems]
        for group, rows in self.differences.items():
            lines.append(f"{group}{'' if group in DECISIVE else ' (does not decide results)'}:")
            named = rows if group in DECISIVE else rows[:NAMED]
            lines += [f"  {name}: {_text(one, 'none')} | {_text(other, 'none')}" for name, one, other in named]
            lines += [f"  and {len(rows) - NAMED} more"] if len(named) < len(rows) else []
        if self.missing:
            lines.append(f"not compared, as one of the two says nothing of it: {', '.join(self.missing)}")
        if not self.differences:
            lines.append("they are alike")
        elif not self.decides:
            lines.append("they are alike in what decides results")
        return lines


def load(path: Path) -> Facts:
    """The facts of a run folder, an environment.json, or an output of `doctor --json`, in groups.

    Raises UserError if there are none.
    """
    file = path / "environment.json" if path.is_dir() else path
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(facts, dict) and "facts" in facts and "findings" in facts:
            return _of_doctor(facts["facts"])
        if isinstance(facts, dict) and "versions" in facts:
            return _of_run(facts, file.parent)
    except OSError as error:
        hint = "; give a run's folder, its environment.json or an output of `yoloyard doctor --json`"
        raise UserError(f"cannot read {file}: {error.strerror}{hint}") from error
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from error
    except KeyError as error:
        raise UserError(f"{file} lacks {error}: another version of yoloyard wrote it") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file.with_name('config.yaml')} is no YAML: {error}") from error
    raise UserError(f"{file} holds neither the environment of a run nor an output of `yoloyard doctor --json`")


def compare(first: Facts, second: Facts) -> Comparison:
    """Group by group, in the order of `GROUPS`; a group that one side lacks is named and not compared."""
    differences = {}
    for group in [group for group in GROUPS if group in first and group in second]:
        a, b = first[group], second[group]
        names = [name for name in dict.fromkeys([*a, *b]) if group not in PARTLY or (name in a and name in b)]
        rows = [(name, a.get(name, ABSENT), b.get(name, ABSENT)) for name in names]
        if differing := [row for row in rows if row[1] != row[2]]:
            differences[group] = differing
    problems = []
    for name, (title, group) in TOGETHER.items():
        one, other = (facts.get(group, {}).get(name) for facts in (first, second))
        if one and other and one != other:
            problems.append(f"{title} {one} and {other}: as two nodes of one run they hang or fail")
    return Comparison(differences, [group for group in GROUPS if (group in first) != (group in second)], problems)


def _of_run(facts: dict[str, Any], folder: Path) -> Facts:
    arithmetic = {name: facts.get(name) for name in ("precision", "cuda", "cudnn", "nccl")}
    if arithmetic["cudnn"] is None:  # a run on a CPU doesn't look which one it would have had
        del arithmetic["cudnn"]
    found: Facts = {
        "arithmetic": {"device": facts["device"].split(":")[0], **arithmetic},
        "packages that decide results": facts["versions"],
        "command": {"command": " ".join(facts["command"])},
        **_of_machine(facts, facts.get("accelerator")),
    }
    found.setdefault("machine", {})["threads"] = facts["threads"]
    if facts.get("data"):
        found["data set"] = _flat(facts["data"])
    if (file := folder / "config.yaml").is_file():
        settings = _flat(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
        undecided = [name for name, leaf in settings_of(TrainConfig).items() if not leaf.decides]
        found["settings"] = {name: value for name, value in settings.items() if name not in undecided}
    if git := facts.get("git"):
        found["code"] = {name: git.get(name) for name in ("commit", "diff_sha256")}
    if "packages" in facts:  # runs of older versions have none
        found["variables"] = facts["variables"]
        pairs = (line.partition("==") for line in facts["packages"])
        others = {name: version or "of unknown version" for name, _, version in pairs}
        found["other packages"] = {name: others[name] for name in others if name not in PACKAGES}
    return found


def _of_doctor(facts: dict[str, Any]) -> Facts:
    packages, found = facts.get("packages") or {"error": "none"}, _of_machine(facts)
    if packages["error"]:
        return found
    rows = {row["name"]: row["version"] for row in reversed(packages["distributions"])}
    torch = packages["imports"]["torch"]
    decisive = {name: rows.get(name, "not installed as a package") for name in PACKAGES}
    if not torch["error"]:
        nccl = ".".join(map(str, torch.get("nccl") or [])) or None
        found["arithmetic"] = {"cuda": torch["cuda"], "cudnn": torch["cudnn"], "nccl": nccl}
        decisive["torch"] = torch["version"]  # with the local part, +cu128
    found["packages that decide results"] = {"python": packages["version"], **decisive}
    found["other packages"] = {name: rows[name] for name in sorted(rows) if name not in PACKAGES}
    return found


def _of_machine(facts: dict[str, Any], used: str | None = None) -> Facts:
    found: Facts = {}
    if nvml := facts.get("nvml"):
        names = dict.fromkeys(str(gpu.get("name")) for gpu in nvml["gpus"])
        found["GPU"] = {"used": used} if used else {}
        found["GPU"] |= {"count": len(nvml["gpus"]), "names": ", ".join(names)}
        found["driver"] = {"driver": nvml["driver"], "serves CUDA": nvml["cuda"]}
    if machine := facts.get("machine"):
        memory, shared = machine["memory"], machine["shared_memory"] or {}
        found["machine"] = {
            **{name: machine[name] for name in ("system", "kernel", "container")},
            "CPUs": machine["cpus"]["usable"],
            "memory (GiB)": round((memory["limit"] or memory["total"] or 0) / 2**30),
            "shared memory (MiB)": round(shared.get("size", 0) / 2**20),
        }
    return found


def _text(value: Any, none: str | None = None) -> str | None:
    return none if value is None else printable(str(value))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
