"""How long a job's hosts have run and what they cost, of all attempts together.

An attempt is the time of one guard on one host. Each has a record of its own, `ledger/ID.json` in the job's folder and
below BACKUP/job, so that attempts on other hosts are counted and none is counted twice.
"""

import json
import logging
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from yoloyard.common.files import write_soon
from yoloyard.jobs.launched import Launch
from yoloyard.storage.copies import utc_text

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Attempt:
    """The record of an attempt."""

    id: str
    run: str
    host: str
    started: str  # UTC
    seconds: float  # up to the last look
    nodes: int  # hosts that are paid for all this time
    gpus: int  # of each
    price: float | None  # dollars an hour of one host
    boot: str  # of which start of the host `since` counts
    since: float  # on its clock that never jumps

    @property
    def cost(self) -> float | None:
        """Dollars; None without a price."""
        return None if self.price is None else self.price * self.nodes * self.seconds / 3600


class Clock:
    """Seconds since the host has started, with those in which it slept: no change of its time makes them wrong."""

    def now(self) -> float:
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Ledger:
    """The attempts of the run that `launch` begins or goes on with; the one called `id` is now."""

    def __init__(self, folder: Path, launch: Launch, id: str, clock: Clock) -> None:
        self._folder, self._clock, self._run = folder / "ledger", clock, launch.run
        self._attempts: dict[str, Attempt] = {}
        self._folder.mkdir(exist_ok=True)
        self.add(path.read_bytes() for path in self._folder.glob("*.json"))
        boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
        now, paid = self._attempts.get(id), (launch.nodes, launch.gpus, launch.price)
        if now is None or now.boot != boot:
            now = Attempt(id, launch.run, platform.node(), utc_text(), 0, *paid, boot, clock.now())
        self.now = now

    def add(self, records: Iterable[bytes]) -> None:
        """Count these attempts, too; of two records of the same one the later counts."""
        for text in records:
            try:
                content = json.loads(text)
                each = Attempt(**{item.name: content[item.name] for item in fields(Attempt)})
            except (ValueError, TypeError, KeyError) as error:
                log.warning(f"a record of the ledger is damaged and left out: {error}")
                continue
            known = self._attempts.get(each.id)
            if each.run == self._run and (known is None or known.seconds < each.seconds):
                self._attempts[each.id] = each
                write_soon(self._folder / f"{each.id}.json", text)  # for the time when the backup can't be reached

    def look(self) -> None:
        """Count the time up to now."""
        self.now = replace(self.now, seconds=round(self._clock.now() - self.now.since, 1))
        self._attempts[self.now.id] = self.now

    def write(self) -> None:
        """Keep the record of this attempt in the job's folder, as far as the disk allows."""
        write_soon(self._folder / f"{self.now.id}.json", self.record())

    def record(self) -> bytes:
        """The record of this attempt."""
        return json.dumps(asdict(self.now)).encode()

    @property
    def attempts(self) -> list[Attempt]:
        """All of them, the oldest first."""
        return sorted(self._attempts.values(), key=lambda each: each.started)

    @property
    def seconds(self) -> float:
        """Of all attempts."""
        return sum(each.seconds for each in self._attempts.values())

    @property
    def cost(self) -> float | None:
        """Dollars, of all hosts and attempts; None where an attempt has no price."""
        costs = [each.cost for each in self._attempts.values()]
        return None if None in costs else sum(filter(None, costs))
