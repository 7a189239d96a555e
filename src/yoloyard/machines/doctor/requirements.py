"""Do packages have the versions that others ask for? `pip check` says so; this picks what matters for training."""

from __future__ import annotations

import re
from typing import Any

from yoloyard.machines.doctor.finding import Finding
from yoloyard.machines.environment.inventory import normal_name

ROOTS = ("yoloyard", "torch", "torchvision")
CUDA = re.compile(r"nvidia-|cuda-|triton$")
MISSING = re.compile(r"(\S+) \S+ requires (\S+), which is not installed\.")
OTHER_VERSION = re.compile(r"(\S+) \S+ has requirement (.+), but you have (\S+) (\S+)\.")
MAX_SHOWN = 4
TITLE = "Versions that packages ask for"


def check(packages: dict[str, Any], pip: str) -> list[Finding]:
    """`packages` as `environment.packages.gather` found them, `pip` the command that a remedy begins with."""
    if error := packages["check"]["error"]:
        evidence = f"pip check can't be run: {error}"
        return [Finding("requirements", TITLE, "skipped", evidence, f"{packages['executable']} -m ensurepip")]
    found, rows = [], unmet(packages)
    for name, title, of_cuda in (("cuda-wheels", "CUDA libraries of torch", True), ("requirements", TITLE, False)):
        mine = [row for row in rows if bool(CUDA.match(row["name"])) == of_cuda]
        if not mine:
            continue
        shown = [f"{row['who']} asks for {row['wanted']}, {row['has']}" for row in mine]
        more = [f"and {len(shown) - MAX_SHOWN} more"] if len(shown) > MAX_SHOWN else []
        wanted = " ".join(dict.fromkeys(f"'{row['wanted']}'" for row in mine))
        is_bad = of_cuda or any(row["missing"] or row["who"].startswith("yoloyard ") for row in mine)
        remedy = f"{pip} install {'--no-deps ' if of_cuda else ''}{wanted}"
        evidence = "; ".join(shown[:MAX_SHOWN] + more)
        found.append(Finding(name, title, "problem" if is_bad else "warning", evidence, remedy))
    if not found:
        count = len({row["name"] for row in packages["distributions"]})
        evidence = f"what yoloyard and torch ask for is there ({count} packages are installed)"
        found.append(Finding("requirements", TITLE, "ok", evidence))
    return found


def unmet(packages: dict[str, Any]) -> list[dict[str, Any]]:
    """Requirements that nothing and, after these, that another version fulfils, of `ROOTS` and what they stand on."""
    asked: dict[str, dict[str, str]] = {}  # by package, then by the name of what it asks for
    versions: dict[str, str] = {}
    for row in packages["distributions"]:
        if row["name"] not in asked:  # the first on sys.path counts
            texts = [text.split(";")[0] for text in row["requires"] if not re.search(r"\bextra\s*==", text)]
            asked[row["name"]] = {
                normal_name(re.split(r"[^\w.-]", text)[0]): re.sub(r"[ ()]", "", text) for text in texts
            }
            versions[row["name"]] = row["version"]
    reached, todo = set(), list(ROOTS)
    while todo:
        if (name := todo.pop()) in asked and name not in reached:
            reached.add(name)
            todo += asked[name]
    missing, wrong = [], []
    for line in packages["check"]["lines"]:
        if match := MISSING.fullmatch(line):
            who, name = map(normal_name, match.groups())
            row = {"wanted": asked.get(who, {}).get(name, name), "has": "which is not installed", "missing": True}
            missing.append(row | {"name": name, "asking": who})
        elif match := OTHER_VERSION.fullmatch(line):
            who, name = normal_name(match[1]), normal_name(match[3])
            row = {"wanted": match[2].split(";")[0].strip(), "has": f"{match[4]} is installed", "missing": False}
            wrong.append(row | {"name": name, "asking": who})
    # torchvision has to fit torch, not the other way round: see `packages`.
    return [
        row | {"who": f"{row['asking']} {versions[row['asking']]}"}
        for row in [*missing, *wrong]
        if row["asking"] in reached and (row["asking"], row["name"]) != ("torchvision", "torch")
    ]
