"""What a run has cost and given: the attempts of its job, in `job.json` of its folder, and what it measured itself."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yoloyard.common.files import write_soon
from yoloyard.common.log import time_text
from yoloyard.common.run_folder import RunFolder, read_object
from yoloyard.jobs.cheaper import FILE
from yoloyard.jobs.launched import Launch
from yoloyard.jobs.node.ledger import Attempt

OF_LAUNCH = ("name", "on", "gpu", "gpus", "nodes", "price", "price_source", "max_hours", "max_cost", "idle_minutes")


def write_bill(run: Path, launch: Launch, attempts: Sequence[Attempt], state: str, reason: str) -> None:
    """Write job.json into the run folder, where there is one: how its job ended, and its attempts."""
    if run.is_dir():
        content = {name: getattr(launch, name) for name in OF_LAUNCH} | {"state": state, "reason": reason}
        content["attempts"] = [dataclasses.asdict(each) | {"cost": each.cost} for each in attempts]
        write_soon(run / FILE, json.dumps(content, indent=1).encode())


def bill(run: RunFolder) -> dict[str, Any]:
    """Time and money of a run, as in `yoloyard runs show --json`; what is not known is None.

    Of a job: the hours of all attempts, from the start of the guard to the last look. Of any other run: the hours of
    training and validation. `utilisation`: the share of the paid hours that it trained and validated without waiting
    for data.
    """
    job, environment = read_object(run.folder / FILE), read_object(run.folder / "environment.json")
    attempts, measured = job.get("attempts", []), ("speed/seconds", "speed/waiting_fraction")
    waited = sum((each.get(measured[0]) or 0) * (each.get(measured[1]) or 0) for each in run.records)
    hours = sum(each["seconds"] for each in attempts) / 3600 if job else run.seconds / 3600
    gpu_hours: float | None = sum(each["seconds"] * each["nodes"] * each["gpus"] for each in attempts) / 3600
    if not job:
        is_on_gpus = environment.get("accelerator") is not None
        gpu_hours = hours * int(run.settings.get("processes") or 1) if is_on_gpus else None
    costs = [each["cost"] for each in attempts]
    return {
        "hours": hours,
        "gpu_hours": gpu_hours or None,
        "attempts": len(attempts) or None,
        "cost": None if None in costs or not costs else sum(costs),
        "price": job.get("price"),
        "price_source": job.get("price_source"),
        "utilisation": (run.seconds - waited) / 3600 / hours if job and hours else None,
        "waiting_seconds": waited,
        "waiting_fraction": waited / run.seconds if run.seconds else None,
        "cheaper": job.get("cheaper"),
    }


def rows(facts: Mapping[str, Any]) -> dict[str, str]:
    """The bill as rows of a table; what is not known is left out."""
    found = {}
    if facts["waiting_fraction"] is not None:
        found["time waiting for data"] = f"{time_text(facts['waiting_seconds'])} ({facts['waiting_fraction']:.0%})"
    if facts["gpu_hours"] is not None:
        found["GPU-hours"] = f"{facts['gpu_hours']:.2f}"
    if facts["cost"] is not None:
        attempts = f"{facts['attempts']} attempts" if facts["attempts"] > 1 else "one attempt"
        price = f"; ${facts['price']:g} an hour of a host: {facts['price_source']}" if facts["price"] else ""
        found["cost"] = f"${facts['cost']:.2f} ({attempts}{price})"
    if facts["utilisation"] is not None:
        found["utilisation"] = f"{facts['utilisation']:.0%} of the time that was paid for"
    if (other := facts["cheaper"]) is not None:
        where = f"{other['gpu']} at {', '.join(filter(None, (other['provider'], other['region'])))}"
        paid = f"${other['cost']:.2f} instead of ${other['instead_of']:.2f}"
        dated = f", price of {other['dated']}" if other["dated"] else ""
        found["on a cheaper GPU"] = f"{paid}, in {time_text(3600 * other['hours'])} ({where}; modelled{dated})"
    return found
