"""The YAML file that `--config` names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yoloyard.common.errors import UsageError
from yoloyard.config.overrides import setting_name
from yoloyard.config.settings import TrainConfig, settings_of


def read_overrides(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, texts and numbers as they are written.

    Raises UsageError with the line if the file is broken or gives a setting twice.
    """
    import yaml

    try:
        content = path.read_bytes()  # of bytes yaml knows the byte order marks of UTF-8 and UTF-16
        tree, loader = yaml.safe_load(content), yaml.BaseLoader(content)
        node = loader.get_single_node()
        texts = loader.construct_document(node) if node else {}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:  # ValueError: 2024-13-45
        raise UsageError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict) or not all(isinstance(name, str) for name in tree):
        raise UsageError(f"{path} must hold lines such as 'epochs: 100'")
    lines: dict[str, int] = {}
    for key, _ in node.value if node else ():
        line = key.start_mark.line + 1
        if key.value in lines:
            raise UsageError(f"{path}:{line}: '{key.value}' is said already in line {lines[key.value]}")
        lines[key.value] = line
    return _as_written(tree, texts)


def _as_written(tree: Mapping[str, Any], texts: Mapping[str, Any]) -> dict[str, Any]:
    """The values without what YAML 1.1 makes of a text or number: of 0123 83, of 1:30 90, of no False, of 3.10 3.1."""
    known = settings_of(TrainConfig)
    values = dict(tree)
    for name, value in tree.items():
        leaf, text = known.get(setting_name(name)), texts.get(name)
        if isinstance(value, dict) and isinstance(text, dict):  # yolov5's `hyp`
            values[name] = _as_written(value, text)
        elif leaf is not None and leaf.type in (str, str | None) and leaf.name != "cache" and value is not None:
            values[name] = _text_as_written(value, text)
        elif leaf is not None and type(value) in (int, float) and isinstance(text, str):
            values[name] = text  # 0x10 and 1:30 are no numbers here
            with contextlib.suppress(ValueError):
                values[name] = value if float(text) == value else text
    return values


def _text_as_written(value: Any, text: Any) -> Any:
    if isinstance(value, list) and isinstance(text, list):
        return [_text_as_written(*pair) for pair in zip(value, text, strict=True)]
    is_plain = not isinstance(text, str) or (type(value) is int and str(value) == text)
    return value if is_plain else text
