"""Where the hosts of a run meet, and how many they are."""

import re
from dataclasses import dataclass

from yoloyard.common.errors import UsageError

UNNAMED = "yoloyard"  # the id of runs that nothing else names


@dataclass(frozen=True)
class Meeting:
    """`min_hosts` to `max_hosts` meet at `endpoint`, HOST:PORT; it is empty where this host is the only one.

    `run_id` is the same on all of them. Another one than UNNAMED names the run when it is started again, too.
    """

    min_hosts: int = 1
    max_hosts: int = 1
    endpoint: str = ""
    run_id: str = UNNAMED


def meeting_of(nodes: str, rendezvous: str | None) -> Meeting:
    """What `--nodes` and `--rendezvous` say. Raises UsageError."""
    match = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", nodes.strip())
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not match or most < least:
        raise UsageError(f"--nodes {nodes}: say how many hosts there are, such as 4, or 1:4 for what may come and go")
    if rendezvous is None:
        if most > 1:
            raise UsageError(f"--nodes {nodes}: say where the hosts meet, on each: --rendezvous HOST:PORT")
        return Meeting()
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--rendezvous {rendezvous}: say HOST:PORT, such as trainer-0:29400")
    return Meeting(least, most, rendezvous)
