"""What a file of weights came from and under which terms, as far as the file says it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yoloyard.common.digests import file_sha256
from yoloyard.common.errors import UserError
from yoloyard.common.lineage import Step, known_history
from yoloyard.models.weights import WEIGHT_FILES, read_weights
from yoloyard.runtimes.document import read_document

RUN_WEIGHTS = ("weights/best.safetensors", "weights/last.safetensors")  # of a run folder, the first that is there


def read_record(path: Path) -> dict[str, Any]:
    """The document of `yoloyard licence FILE --json` (docs/json.md), of a file or a run folder's best weights.

    Raises UserError if the file is missing, damaged or something else.
    """
    if path.is_dir():
        found = [path / name for name in RUN_WEIGHTS if (path / name).exists()]
        if not found:
            raise UserError(f"{path} holds no {RUN_WEIGHTS[0]}: name a file, or the folder of a run")
        path = found[0]
    metadata = read_weights(path)[1] if path.suffix.lower() in WEIGHT_FILES else read_document(path)
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
