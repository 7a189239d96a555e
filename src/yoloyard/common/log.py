"""Lines for the user: every module logs to `logging.getLogger(__name__)`, and a command shows what is logged.

Python's own logging carries them, so a program that uses this package as a library decides where they go.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ONCE = {"once": True}  # for `extra` of a log call: a command shows equal lines of this kind once


class _Lines(logging.Handler):
    def __init__(self, show: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self._show, self._shown = show, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if getattr(record, "once", False) and line in self._shown:
            return
        self._shown.add(line)
        self._show(f"warning: {line}" if record.levelno >= logging.WARNING else line)


@contextmanager
def shown_lines(show: Callable[[str], object] = print) -> Iterator[None]:
    """Within the context, each line that the package logs goes to `show` alone, a warning with "warning: " before it.

    Where such contexts are nested, the inner one shows the lines.
    """
    logger = logging.getLogger("yoloyard")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers, logger.propagate = [_Lines(show)], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)


def time_text(seconds: float) -> str:
    """Such as 2.5 min or 11.1 h."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def bytes_text(size: float) -> str:
    """Bytes, such as 12.5 MB or 1.3 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
