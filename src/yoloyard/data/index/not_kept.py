"""What is said where a cache can't be written: nothing is lost, but the same work comes again with the next start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def not_kept(file: Path, error: Exception) -> str:
    """The line about a `file` or folder of a cache, the same for all caches, which lie side by side in one folder."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    reason = (cause.strerror if isinstance(cause, OSError) else None) or cause
    return (
        f"the cache {file.parent.parent} can't be written ({reason}), so images and labels are read again at each "
        "start; make room or name another folder by YOLOYARD_CACHE"
    )


def once(say: Callable[[str], object]) -> Callable[[str], None]:
    """`say`, but each line once."""
    said: set[str] = set()

    def say_new(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    return say_new
