"""What a run has cost and given: the attempts of its job, in `job.json` of its folder, and what it measured itself."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yoloyard.common.files import write_soon
from yoloyard.common.log import time_text
from yoloyard.common.run_folder import RunFolder
from yoloyard.jobs.launched import Launch

FILE = "job.json"


def write_bill(run: Path, launch: Launch, attempts: Sequence[Any], state: str, reason: str) -> None:
    """Write job.json into the run folder; `attempts` are the records of the ledger. Nothing without a run folder."""
    if not run.is_dir():
        return
    facts = dataclasses.asdict(launch)
    names = ("name", "on", "gpu", "gpus", "nodes", "price", "price_source", "max_hours", "max_cost", "idle_minutes")
    content = {name: facts[name] for name in names} | {"state": state, "reason": reason}
    content["attempts"] = [dataclasses.asdict(each) | {"cost": each.cost} for each in attempts]
    write_soon(run / FILE, json.dumps(content, indent=1).encode())


def bill(run: RunFolder) -> dict[str, Any]:
    """The document of `yoloyard runs show --json` about time and money; what is not known is None.

    `gpu_hours` and `cost` are those of the attempts; of a run that was no job, the hours of training on its devices.
    `utilisation` is the share of the paid hours in which it trained or validated and did not wait for data.
    """
    try:
        job: Mapping[str, Any] = json.loads((run.folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        job = {}
    waited = sum((each.get("speed/seconds") or 0) * (each.get("speed/waiting_fraction") or 0) for each in run.records)
    attempts = job.get("attempts", [])
    hours = sum(each["seconds"] for each in attempts) / 3600 if job else run.seconds / 3600
    devices = max(int(run.settings.get("processes") or 1), 1)
    gpu_hours = (
        sum(each["seconds"] / 3600 * each["nodes"] * each["gpus"] for each in attempts) if job else hours * devices
    )
    costs = [each["cost"] for each in attempts]
    is_gpu = bool(job.get("gpus")) if job else str(run.settings.get("device")) not in ("cpu", "mps")
    return {
        "hours": hours,
        "gpu_hours": gpu_hours if is_gpu else None,
        "cost": None if None in costs or not costs else sum(costs),
        "price": job.get("price"),
        "price_source": job.get("price_source"),
        "attempts": len(attempts) or None,
        "utilisation": max(run.seconds - waited, 0) / 3600 / hours if hours else None,
        "waiting_seconds": waited,
        "waiting_share": waited / run.seconds if run.seconds else None,
    }


def rows(facts: Mapping[str, Any]) -> dict[str, str]:
    """The bill as rows of a table."""
    found = (
        {"time waiting for data": f"{time_text(facts['waiting_seconds'])} ({facts['waiting_share']:.0%})"}
        if facts["waiting_share"] is not None
        else {}
    )
    if facts["gpu_hours"] is not None:
        found["GPU-hours"] = f"{facts['gpu_hours']:.2f}"
    if facts["cost"] is not None:
        found["cost"] = f"${facts['cost']:.2f} (${facts['price']:g} an hour, {facts['price_source'] or 'as launched'})"
    if facts["attempts"]:
        found["attempts"] = str(facts["attempts"])
        found["utilisation"] = f"{facts['utilisation']:.0%} of the time that was paid for"
    return found
