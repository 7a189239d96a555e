"""`python -m yoloyard.jobs.node FOLDER`: the keeper of the job in FOLDER, as run.sh starts it."""

import contextlib
import sys
from pathlib import Path

from yoloyard.common.log import shown_lines
from yoloyard.jobs.node.keeper import keep
from yoloyard.storage.copies import utc_text


def say(line: str) -> None:
    """Print a line with the time."""
    with contextlib.suppress(OSError):  # the disk of the log is full: the job goes on
        sys.stdout.write(f"{utc_text()} keeper: {line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    with shown_lines(say):
        sys.exit(keep(Path(sys.argv[1])))
