"""Where weights came from: the `history` in the metadata of weights files and exported files, the oldest step first.

And what the licences in it mean for what is made of them.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from yoloyard.common.versions import versions

Step = dict[str, Any]
PERMISSIVE = ("MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause")  # may be in a product whose source stays closed
COPYLEFT = ("AGPL", "GPL")  # how the names of licences begin that hold for a product, too


def step(what: str, file: str | None, sha256: str | None, licence: str | None, **more: str | None) -> Step:
    """What was done with weights today: `what` is imported, trained or exported.

    `file`, `sha256` and `licence` are those of what it began with; no file: random weights. `more`: `data` of a
    training, `program` that wrote an imported file.
    """
    made = {"date": datetime.now(UTC).date().isoformat(), "yoloyard": versions()["yoloyard"]}
    return {"what": what, "file": file, "sha256": sha256, "licence": licence, **more, **made}


def longer_history(
    metadata: Mapping[str, Any], what: str, file: str | None, sha256: str | None, **more: str | None
) -> list[Step]:
    """The history of what is made from a file with `metadata`: that of the file, and a step more."""
    return [*known_history(metadata), step(what, file, sha256, metadata.get("licence"), **more)]


def known_history(metadata: Mapping[str, Any]) -> list[Step]:
    """The history of a file with `metadata`; for one without it, what else it says of its last step.

    Empty where it says nothing.
    """
    history = metadata.get("history")
    if isinstance(history, list) and all(isinstance(each, dict) and "what" in each for each in history):
        return history
    if "model" not in metadata:
        return []
    last = {"sha256": None, "licence": metadata.get("licence"), "date": None}
    if (config := metadata.get("config")) is None:
        programs = [f"{name} {version}" for name, version in metadata.get("versions", {}).items()]
        return [{"what": "imported", "file": None, "program": ", ".join(programs) or None, **last}]
    file = PurePath(config["weights"]).name if config.get("weights") else None
    made = {"data": data_name(config["data"]), "yoloyard": metadata.get("versions", {}).get("yoloyard")}
    return [{"what": "trained", "file": file, **last, **made}]


def data_name(path: str) -> str:
    """How a history names a data.yaml: with its folder, since many are called so, but not with the host's path."""
    return "/".join(PurePath(path).parts[-2:])


def licences_of(history: Sequence[Step]) -> list[str]:
    """The licences that the steps of a history name, each once."""
    return list(dict.fromkeys(each["licence"] for each in history if each.get("licence")))


def meaning(history: Sequence[Step]) -> str:
    """One line: what the licences in a history mean for whoever wants to use the result."""
    licences = licences_of(history)
    under = f"weights under {' and '.join(licences)}"
    if strict := " and ".join(each for each in licences if each.startswith(COPYLEFT)):
        return (
            f"{under}: a product that contains the result must be offered under {strict}, or with a licence bought "
            "from their publisher"
        )
    if set(licences) - {*PERMISSIVE}:
        return f"{under}: read what it asks for before a product contains the result"
    if licences:
        return f"{under}: the result may be in any product; keep their licence and copyright notice with it"
    if not history:
        return "the file doesn't say what it came from: ask whoever gave it to you for its terms"
    if history[0]["what"] == "trained" and history[0].get("file") is None:
        return "trained from random weights: no licence of other weights holds for it; your data have their own terms"
    return "it came from weights whose licence is not recorded: ask whoever gave them to you for their terms"
