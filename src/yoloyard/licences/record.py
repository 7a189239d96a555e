"""What a file of weights came from and under which terms, as far as the file says it."""

from pathlib import Path
from typing import Any

from yoloyard.common.digests import file_sha256
from yoloyard.common.lineage import known_history, licences_of, meaning
from yoloyard.models.weights import read_weights
from yoloyard.runtimes.document import READERS, read_document


def read_record(path: Path) -> dict[str, Any]:
    """The document of `yoloyard licence FILE --json` (docs/json.md).

    Raises UserError if the file is missing, damaged or something else.
    """
    metadata = read_document(path) if path.suffix.lower() in READERS else read_weights(path)[1]
    history = known_history(metadata or {})
    facts = {"file": path, "sha256": file_sha256(path), "history": history, "licences": licences_of(history)}
    return facts | {"meaning": meaning(history)}
