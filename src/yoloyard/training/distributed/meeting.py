"""Where the hosts of a run meet, and how many they are."""

import re
from dataclasses import dataclass

from yoloyard.common.errors import UsageError
from yoloyard.training.distributed.cluster import Place

UNNAMED = "yoloyard"  # the id of runs that nothing else names


@dataclass(frozen=True)
class Meeting:
    """`min_hosts` to `max_hosts` meet at `endpoint`, HOST:PORT; it is empty where this host is the only one.

    `run_id` is the same on all of them. Any but UNNAMED names the run when it is started again, too. `is_head`: is the
    endpoint of this host; None: its name tells.
    """

    min_hosts: int = 1
    max_hosts: int = 1
    endpoint: str = ""
    run_id: str = UNNAMED
    is_head: bool | None = None

    @property
    def nodes(self) -> str:
        """As in `--nodes`."""
        return f"{self.min_hosts}:{self.max_hosts}" if self.min_hosts < self.max_hosts else str(self.min_hosts)


def host_counts(nodes: str) -> tuple[int, int]:
    """The least and the most hosts that `--nodes` names. Raises UsageError."""
    match = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", nodes.strip())
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not match or most < least:
        raise UsageError(f"--nodes {nodes}: say how many hosts there are, such as 4, or 1:4 for what may come and go")
    return least, most


def meeting_of(nodes: str | None, rendezvous: str | None, place: Place | None = None) -> Meeting:
    """What `--nodes` and `--rendezvous` say, and the environment where they say nothing. Raises UsageError."""
    place = place or Place()
    if place.worker and (rendezvous or nodes not in (None, "1")):
        raise UsageError("srun has started a process for each task of this run: leave out --nodes and --rendezvous")
    nodes = nodes or place.nodes or "1"
    least, most = host_counts(nodes)
    endpoint = rendezvous or (place.endpoint if most > 1 else "")
    if not endpoint:
        if most > 1:
            raise UsageError(f"--nodes {nodes}: say where the hosts meet, on each: --rendezvous HOST:PORT")
        return Meeting()
    host, _, port = endpoint.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--rendezvous {endpoint}: say HOST:PORT, such as trainer-0:29400")
    return Meeting(least, most, endpoint, place.run_id or UNNAMED, None if rendezvous else place.is_head)
