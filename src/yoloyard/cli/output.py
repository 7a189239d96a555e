"""What commands print: lines and tables for people, or one JSON document for programs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def stdout_for_json(as_json: bool) -> Iterator[None]:
    """While entered and if `as_json`, all lines go to stderr, so that stdout holds the JSON document alone."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def print_json(document: dict[str, Any]) -> None:
    """Print a JSON document; paths as texts."""
    import json  # which --help needn't load

    print(json.dumps(document, indent=1, default=os.fspath))


def count_of(number: int, noun: str) -> str:
    """`1 error`, `2 errors`, `1,000 errors`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
