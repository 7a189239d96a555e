"""A side of epoch.py: each turn runs a whole command and reports its seconds and the peak of its memory.

    whole_command.py FOLDER COMMAND ...      FOLDER is emptied before each turn; what the command prints goes to a log

Memory is that of all processes that the command starts, each page shared by several counted once (PSS). That takes the
system 10 ms and more a look, in which it keeps a core busy, so it is asked only where what is resident has become more;
that is looked at ten times a second, so a peak that is shorter may be missed.
"""

import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from turns import Turns

LOOK_SECONDS = 0.1
LOOK_BYTES = 4e6  # more than before that make another look worth while


def main() -> None:
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    turns = Turns()
    while turns.wait():
        shutil.rmtree(folder, ignore_errors=True)
        began = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        most_resident = peak = 0
        while process.poll() is None:
            processes = list(tree_of(process.pid))
            resident = sum(map(resident_of, processes))
            if resident > most_resident + LOOK_BYTES:
                most_resident = resident
                peak = max(peak, sum(map(memory_of, processes)))
            time.sleep(LOOK_SECONDS)
        seconds = time.perf_counter() - began
        if process.returncode:
            sys.exit(f"exit code {process.returncode}: {command}")
        turns.report(seconds=seconds, megabytes=peak / 1e6)


def tree_of(process: int) -> Iterator[int]:
    """The number of the process and those of all that it has started and that live, they and theirs."""
    yield process
    try:
        threads = [Path(thread, "children").read_text() for thread in Path(f"/proc/{process}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return
    for child in " ".join(threads).split():
        yield from tree_of(int(child))


def resident_of(process: int) -> int:
    """Bytes of a process with all that it shares; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except (FileNotFoundError, ProcessLookupError):
        return 0


def memory_of(process: int) -> int:
    """Bytes of a process, its share of what it shares; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    main()
