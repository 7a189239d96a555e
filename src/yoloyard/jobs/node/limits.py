"""When a job must end, though its training would go on."""

from dataclasses import dataclass

from yoloyard.common.log import time_text
from yoloyard.jobs.launched import Launch

SLOW_MINUTES = 30.0  # without a sign of life before the first step (caches, compiling) and after the last (the report)
FOLLOW_SECONDS = 300.0  # that the other hosts give the one of rank 0 to end the run for all


def limit_reached(launch: Launch, seconds: float, cost: float | None, is_first: bool) -> str | None:
    """Which limit is reached, in a line; None: neither. Cost counts on the host of rank 0 (`is_first`), for all."""
    slack = 0 if is_first else FOLLOW_SECONDS
    if launch.max_hours is not None and seconds >= 3600 * launch.max_hours + slack:
        return f"max_hours: it has run for {seconds / 3600:.2f} h of {launch.max_hours:g} h"
    if is_first and launch.max_cost is not None and cost is not None and cost >= launch.max_cost:
        return f"max_cost: it has cost ${cost:.2f} of ${launch.max_cost:g}"
    return None


@dataclass
class Idle:
    """How long a job has shown no progress. `minutes` is `idle_minutes`; None: it may take all time."""

    minutes: float | None
    since: float  # of the last sign of progress, in seconds of the keeper's clock
    _seen: object = None

    def look(self, now: float, seen: object, is_stepping: bool) -> str | None:
        """That it is idle, in a line, or None. `seen`: anything that changes with each step.

        Where it is not `is_stepping`, work is done of which little can be seen: SLOW_MINUTES are given at least.
        """
        if seen != self._seen:
            self._seen, self.since = seen, now
        allowed = (self.minutes or 0) if is_stepping else max(self.minutes or 0, SLOW_MINUTES)
        is_idle = self.minutes is not None and now - self.since >= 60 * allowed
        return f"idle_minutes: no step for {time_text(now - self.since)}" if is_idle else None
