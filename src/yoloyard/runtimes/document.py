"""The metadata that an exported file carries (see `metadata.py`), read without loading its network."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from yoloyard.common.errors import UserError
from yoloyard.models.importing.torch_files import read_bytes
from yoloyard.runtimes.engine import SIDECAR, SUFFIX
from yoloyard.runtimes.extras import needed
from yoloyard.runtimes.metadata import KEY, OUTPUTS, FileFacts


def read_document(path: Path) -> dict[str, Any] | None:
    """What an exported file says of itself: a weights file's metadata and `file`. None if another program wrote it.

    Raises UserError, naming the file, if it is missing, cut short or something else, or of another version.
    """
    content = read_bytes(path.with_suffix(SIDECAR) if path.suffix == SUFFIX else path)
    if path.suffix.lower() not in READERS:
        raise UserError(f"{path} is neither a weights file nor an exported file ({', '.join(READERS)})")
    try:
        text = READERS[path.suffix.lower()](content)
    except UserError:
        raise
    except Exception as error:  # of protobuf, XML or zip files
        raise UserError(f"{path} is not whole: it was cut short, damaged, or is no {path.suffix} file") from error
    if text is None:
        return None
    try:
        document: dict[str, Any] = json.loads(text)
        facts = FileFacts(**document["file"])
        is_known = facts.format == FileFacts.format and facts.outputs in OUTPUTS
    except (ValueError, TypeError, LookupError):
        is_known = False
    if not is_known:
        raise UserError(f"{path} was exported by another version of yoloyard: export it again with this one")
    return document


def _of_onnx(content: bytes) -> str | None:
    model = needed("onnx", "onnx").load_model_from_string(content)
    if not model.HasField("graph"):  # an empty file is a message, too
        raise ValueError("no graph")
    return next((each.value for each in model.metadata_props if each.key == KEY), None)


def _of_ir(content: bytes) -> str | None:
    found = ElementTree.fromstring(content).find(f"rt_info/{KEY}")
    return None if found is None else found.get("value")


def _of_archive(content: bytes) -> str | None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name for name in archive.namelist() if name.endswith(f"/extra/{KEY}")]
        return archive.read(names[0]).decode() if names else None


def _of_sidecar(content: bytes) -> str:
    return json.dumps(json.loads(content)["document"])


READERS: dict[str, Callable[[bytes], str | None]] = {
    ".onnx": _of_onnx,
    ".xml": _of_ir,
    ".pt2": _of_archive,
    ".torchscript": _of_archive,
    SUFFIX: _of_sidecar,
}
