"""What a file of weights came from and under which terms, as far as the file says it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yoloyard.common.digests import file_sha256
from yoloyard.common.lineage import Step, known_history
from yoloyard.models.weights import read_weights
from yoloyard.runtimes.document import READERS, read_document


def read_record(path: Path) -> dict[str, Any]:
    """The document of `yoloyard licence FILE --json` (docs/json.md).

    Raises UserError if the file is missing, damaged or something else.
    """
    metadata = read_document(path) if path.suffix.lower() in READERS else read_weights(path)[1]
    history = known_history(metadata or {})
    licences = list(dict.fromkeys(each["licence"] for each in history if each.get("licence")))
    facts = {"file": path, "sha256": file_sha256(path), "history": history, "licences": licences}
    return facts | {"meaning": _meaning(history, " and ".join(licences))}


def _meaning(history: Sequence[Step], licences: str) -> str:
    if licences:
        return f"weights under {licences}: the result is under it, too, unless their publisher gave you another licence"
    if not history:
        return "the file doesn't say what it came from: ask whoever gave it to you for its terms"
    if history[0]["what"] == "trained" and history[0].get("file") is None:
        return "trained from random weights: no licence of other weights holds for it; your data have their own terms"
    return "it came from weights whose licence is not recorded: ask whoever gave them to you for their terms"
