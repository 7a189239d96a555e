"""Errors that are meant for the person at the keyboard: one clear line, no traceback."""

import sysconfig
import traceback
from pathlib import Path


class UserError(Exception):
    """Something went wrong that the user can put right. The command line prints the message and exits with 1."""

    exit_code = 1


class UsageError(UserError):
    """The command, a flag or a config value is wrong. The command line prints the message and exits with 2."""

    exit_code = 2


def own_line(error: BaseException) -> str:
    """Where in the user's own code an error arose, as "file, line 12 (`x = f(y)`)"; empty if in none of it."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno} (`{(error.text or '').strip()}`)"
    others = [str(Path(__file__).parent), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*others, "<")):
            return f"{frame.filename}, line {frame.lineno} (`{(frame.line or '').strip()}`)"
    return ""
