"""Packages that only some commands need: imported where they are used, and never allowed to report to their makers."""

import importlib
from typing import Any

from yoloyard.common.errors import UserError
from yoloyard.common.quiet import quiet


def needed(module: str, extra: str) -> Any:
    """Import and return `module`, which the extra `extra` of this package brings.

    Telemetry is switched off first. Raises UserError with the command that installs it.
    """
    quiet()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = f'pip install "yoloyard[{extra}]"'
        raise UserError(f"{module} can't be used ({' '.join(str(error).split())}): {remedy}") from error
