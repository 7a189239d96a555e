"""What is said where a cache can't be written: nothing is lost, but the same work comes again with the next start."""

from __future__ import annotations

import logging
from pathlib import Path

from yoloyard.common.log import ONCE

log = logging.getLogger(__name__)


def warn_not_kept(file: Path, error: Exception) -> None:
    """Log that a `file` or folder of a cache was not written; all caches lie together and have one line."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    reason = (cause.strerror if isinstance(cause, OSError) else None) or cause
    log.info(
        f"the cache {file.parent.parent} can't be written ({reason}), so images and labels are read again at each "
        "start; make room or name another folder by YOLOYARD_CACHE",
        extra=ONCE,
    )
